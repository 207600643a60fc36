"""Asks questions about pictures and answers them: the tabletop's web data.

A skill is a kind of question. Its function chooses what to show and asks about
it; what it asks follows from the facts of the pictures alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from data.picture_scenes import Drawn
from rt2_jax.envs.tabletop.descriptions import (
  DESCRIBERS,
  LANGUAGES,
  Description,
  alike,
  sum_of,
)
from rt2_jax.envs.tabletop.instructions import Task, instruct
from rt2_jax.envs.tabletop.pictures import Concept, Pictures
from rt2_jax.errors import UserError
from rt2_jax.prompt import PLAN_START, ROBOT_TEMPLATE
from rt2_jax.tokenizer import loc_word, place_words

_CELLS = 4  # of a grid, along a side
_WHAT = {
  "de": "Answer in de: was ist das?",
  "fr": "Answer in fr: qu'est-ce que c'est ?",
  "es": "Answer in es: ¿qué es esto?",
}
# How often a thing is described in each way that its facts allow.
_SHARES = {
  "kind": 1,
  "use": 2,
  "capital": 1,
  "colour": 1,
  "de": 1,
  "es": 1,
  "fr": 1,
}
_PLANNED = ("move_to", "pick")  # families that are about one thing
_PLANS_BY_NAME = 0.3


class Question(NamedTuple):
  """What is asked about a picture.

  Attributes:
    shown: names of the things in the picture; the question is about the first.
    ask: given the picture, the prompt and the right answer.
    language: of the answer.
    kind: of the picture, where the question needs one, of
      `picture_scenes.SCENES`.
  """

  shown: list[str]
  ask: Callable[[Drawn], tuple[str, str]]
  language: str = "en"
  kind: str = ""


class Words:
  """Draws things, and phrases that only one of some things fits."""

  def __init__(
    self,
    pictures: Pictures,
    names: tuple[str, ...],
    rng: np.random.Generator,
    location_bins: int,
  ):
    self.concepts = [pictures[name] for name in names]
    self.rng = rng
    self.bins = location_bins

  def one(self, fits: Callable[[Concept], object] = lambda c: True) -> Concept:
    """Draws a thing that fits. Raises UserError where none does."""
    known = [c for c in self.concepts if fits(c)]
    if not known:
      raise UserError(
        f"got {len(self.concepts)} concepts, none of which this skill can ask "
        "about; pass more --concepts, or leave the skill out of --skills"
      )
    return known[int(self.rng.integers(len(known)))]

  def some(self, count: int) -> list[str]:
    """Names of `count` things; a question is about the first."""
    first = self.one()
    return [first.name, *self.others(first, count, lambda _: True)]

  def others(
    self, concept: Concept, count: int, fits: Callable[[Concept], object]
  ) -> list[str]:
    """Names of `count` - 1 things, or all there are, that fit beside it."""
    known = [c.name for c in self.concepts if c != concept and fits(c)]
    order = self.rng.permutation(len(known))[: count - 1]
    return [known[i] for i in order]

  def phrase(self, concept: Concept) -> Description:
    """Words for a thing without its name, and what else they do not fit."""
    shares = _SHARES
    if "value" in concept.facts:  # languages too, but no kind: all are numbers
      shares = {"sum": 3} | {code: 1 for code in LANGUAGES}
    choices = []
    for kind, share in shares.items():
      if DESCRIBERS[kind].can(concept):
        words = DESCRIBERS[kind].describe(concept, self.rng)
        choices += share * [words]
    return choices[int(self.rng.integers(len(choices)))]

  def place(self, drawn: Drawn, name: str) -> str:
    """Writes the middle of a thing as two words, `<loc0416><loc0608>`: y, x."""
    return place_words(drawn.boxes[drawn.names.index(name)], self.bins)

  def box(self, drawn: Drawn, name: str) -> str:
    """Writes a thing's box as four words; edges move out to those of bins."""
    y_min, x_min, y_max, x_max = drawn.boxes[drawn.names.index(name)]
    low = (math.floor(v * self.bins) / self.bins for v in (y_min, x_min))
    high = (math.ceil(v * self.bins) / self.bins for v in (y_max, x_max))
    return "".join(loc_word(v) for v in (*low, *high))

  def in_cell(self, drawn: Drawn, row: int, column: int) -> str:
    """A word of the name of what lies there, "hand" or "nothing"."""
    shown = dict(zip(drawn.names, drawn.boxes, strict=True))
    if drawn.hand is not None:
      shown["hand"] = drawn.hand * 2
    y, x = (row + 0.5) / _CELLS, (column + 0.5) / _CELLS
    reach = 0.3 / _CELLS  # a cell may show no more than a corner
    for name, (y_min, x_min, y_max, x_max) in shown.items():
      inside = (
        y_min - reach <= y <= y_max + reach
        and x_min - reach <= x <= x_max + reach
      )
      if inside:
        parts = name.split()
        return parts[int(self.rng.integers(len(parts)))]
    return "nothing"


def name(words: Words, count: int) -> Question:
  """Asks what a single thing is called."""
  c = words.one()
  return Question([c.name], lambda _: ("Answer in en: what is this?", c.name))


def caption(words: Words, count: int) -> Question:
  """Asks for all things from left to right."""
  shown = words.some(count)

  def ask(drawn: Drawn) -> tuple[str, str]:
    *first, last = drawn.names
    things = f"{', '.join(first)} and {last}" if first else last
    start = "a table with" if drawn.kind == "table" else "a picture of"
    return "Generate caption in en", f"{start} {things}"

  return Question(shown, ask)


def category(words: Words, count: int) -> Question:
  """Asks for a thing's kind, or for the thing of a kind."""
  c = words.one()
  if count == 1:
    question = "Answer in en: what kind of thing is this?"
    return Question([c.name], lambda _: (question, c.category))
  shown = [
    c.name,
    *words.others(c, count, lambda o: not alike(o.category, c.category)),
  ]
  question = f"Answer in en: which one is of the kind {c.category}?"
  return Question(shown, lambda _: (question, c.name))


def keyword(words: Words, count: int) -> Question:
  """Asks for the thing that goes with a word, or for a word."""
  c = words.one(lambda c: fresh_keywords(c))
  own = fresh_keywords(c)
  word = own[int(words.rng.integers(len(own)))]
  if count == 1:
    # The words in order: an answer that can be known.
    question = "Answer in en: which words go with this?"
    return Question([c.name], lambda _: (question, ", ".join(own[:3])))
  shown = [
    c.name,
    *words.others(c, count, lambda o: word not in (*o.keywords, o.name)),
  ]
  question = f"Answer in en: which one goes with {word}?"
  return Question(shown, lambda _: (question, c.name))


def fresh_keywords(concept: Concept) -> list[str]:
  """Keywords that are not in the name already."""
  return [w for w in concept.keywords if w not in concept.name.lower()]


def fact(words: Words, count: int) -> Question:
  """Asks for colour, use, country or capital."""
  kinds = ("colour", "does", "country", "capital")
  kind = kinds[int(words.rng.integers(len(kinds)))]
  c = words.one(lambda c: kind in c.facts)
  shown = [c.name, *words.others(c, count, lambda o: kind not in o.facts)]
  value = str(c.facts[kind])
  if kind == "does":
    question, answer = f"which one {value}?", c.name
  elif kind == "colour":
    question, answer = f"what colour is the {c.name}?", value
  elif kind == "country":
    question, answer = "which country has this flag?", value
  else:
    question, answer = "what is the capital of this country?", value
  return Question(shown, lambda _: (f"Answer in en: {question}", answer))


def arithmetic(words: Words, count: int) -> Question:
  """Asks for the sum of two numbers, or for the number that a sum gives."""
  c = words.one(lambda c: "value" in c.facts)
  other = words.one(lambda o: "value" in o.facts and o != c)
  if words.rng.random() < 0.5 and count > 1:
    total = int(c.facts["value"]) + int(other.facts["value"])
    question = "Answer in en: what is the sum of the numbers?"
    return Question([c.name, other.name], lambda _: (question, str(total)))
  shown = [c.name, *words.others(c, count, lambda o: True)]
  question = (
    f"Answer in en: which one is {sum_of(int(c.facts['value']), words.rng)}?"
  )
  return Question(shown, lambda _: (question, c.name))


def language(words: Words, count: int) -> Question:
  """Asks for the thing's name in German, French or Spanish."""
  code = sorted(_WHAT)[int(words.rng.integers(len(_WHAT)))]
  c = words.one(lambda c: code in c.facts)
  if count == 1:
    return Question([c.name], lambda _: (_WHAT[code], str(c.facts[code])), code)
  word = c.facts[code]
  shown = [c.name, *words.others(c, count, lambda o: o.facts.get(code) != word)]
  question = f"Answer in en: which one is the {word}?"
  return Question(shown, lambda _: (question, c.name))


def detect(words: Words, count: int) -> Question:
  """Asks for the box around a thing, in PaliGemma's words."""
  shown = words.some(count)
  return Question(
    shown,
    lambda drawn: (
      f"detect {shown[0]}",
      f"{words.box(drawn, shown[0])} {shown[0]}",
    ),
  )


def point(words: Words, count: int) -> Question:
  """Asks for the middle of a thing."""
  shown = words.some(count)
  return Question(
    shown,
    lambda drawn: (f"point to the {shown[0]}", words.place(drawn, shown[0])),
  )


def point_by_fact(words: Words, count: int) -> Question:
  """Asks for the middle of a thing, described without its name."""
  c = words.one()
  phrase, excludes = words.phrase(c)
  shown = [c.name, *words.others(c, count, excludes)]
  return Question(
    shown, lambda drawn: (f"point to {phrase}", words.place(drawn, c.name))
  )


def plan(words: Words, count: int) -> Question:
  """What a robot would act on, and where that is.

  Asked and answered in a robot's own words (paper, section 4.4), without what
  follows: the web knows nothing of actions.
  """
  c = words.one()
  by_name = words.rng.random() < _PLANS_BY_NAME
  phrase, excludes = (
    DESCRIBERS["name"].describe(c, words.rng) if by_name else words.phrase(c)
  )
  shown = [c.name, *words.others(c, count, excludes)]
  family = _PLANNED[int(words.rng.integers(len(_PLANNED)))]
  asked = instruct(Task(family, c.name), words.rng, target=phrase)
  question = ROBOT_TEMPLATE.format(instruction=asked)

  def ask(drawn: Drawn) -> tuple[str, str]:
    place = words.place(drawn, c.name)
    return question, f"{PLAN_START}{c.name} {place}"

  return Question(shown, ask)


def hand(words: Words, count: int) -> Question:
  """Asks where the robot's hand is."""
  shown = words.some(count)
  return Question(
    shown,
    lambda drawn: (
      "point to the hand",
      place_words(drawn.hand * 2, words.bins),
    ),
    kind="table",
  )


def grid(words: Words, count: int) -> Question:
  """What lies in each cell of a grid, row by row, in one word each.

  Many small answers about one picture: what a small encoder learns fastest
  from. Of a name with several words, any may stand for it.
  """
  shown = words.some(count)

  def ask(drawn: Drawn) -> tuple[str, str]:
    cells = [words.in_cell(drawn, *divmod(i, _CELLS)) for i in range(_CELLS**2)]
    # A space before each: then a word is the same token wherever it stands.
    return "Answer in en: what is in each cell?", "".join(
      f" {c}" for c in cells
    )

  return Question(shown, ask)


SKILLS: Mapping[str, Callable[[Words, int], Question]] = {
  "name": name,
  "caption": caption,
  "category": category,
  "keyword": keyword,
  "fact": fact,
  "arithmetic": arithmetic,
  "language": language,
  "detect": detect,
  "point": point,
  "point_by_fact": point_by_fact,
  "hand": hand,
  "grid": grid,
  "plan": plan,
}

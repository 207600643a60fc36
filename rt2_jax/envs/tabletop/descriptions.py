"""Describes things without their names, for web questions and robot suites.

A description stands where an instruction has "the" and a name, as in "pick up
the one that barks".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from rt2_jax.envs.tabletop.pictures import Concept

NUMBERS = (
  *("zero", "one", "two", "three", "four", "five"),
  *("six", "seven", "eight", "nine", "ten"),
)
LANGUAGES = ("de", "es", "fr")

_ALIKE = (
  {"fruit", "vegetable", "food", "sweets", "drink"},
  {"fruit", "vegetable", "plant", "nature"},
  {"animal", "bird", "sea animal", "insect"},
  {"tool", "household", "electronics", "toy", "sport", "clothing"},
  {"electronics", "musical instrument", "toy", "vehicle"},
  {"sign", "shape", "heart", "number", "flag"},
)


class Description(NamedTuple):
  """Words for a thing.

  Attributes:
    text: e.g. "the one that barks".
    excludes: true for another thing that can lie beside it, since the words
      do not fit that one.
  """

  text: str
  excludes: Callable[[Concept], bool]


def alike(kind: str, other: str) -> bool:
  """Tells whether one thing could be called by both kinds."""
  return kind == other or any({kind, other} <= group for group in _ALIKE)


def by_name(concept: Concept, rng: np.random.Generator) -> Description:
  return Description(f"the {concept.name}", lambda c: c.name != concept.name)


def by_kind(concept: Concept, rng: np.random.Generator) -> Description:
  kind = concept.category
  return Description(f"the {kind}", lambda c: not alike(c.category, kind))


def by_use(concept: Concept, rng: np.random.Generator) -> Description:
  does = concept.facts["does"]
  return Description(f"the one that {does}", lambda c: c != concept)


def by_capital(concept: Concept, rng: np.random.Generator) -> Description:
  capital = concept.facts["capital"]
  return Description(
    f"the flag of the country with {capital}", lambda c: c != concept
  )


def by_colour(concept: Concept, rng: np.random.Generator) -> Description:
  colour = concept.facts["colour"]
  return Description(
    f"the {colour} thing", lambda c: c.facts.get("colour", colour) != colour
  )


def by_sum(concept: Concept, rng: np.random.Generator) -> Description:
  return Description(
    sum_of(int(concept.facts["value"]), rng), lambda c: c != concept
  )


def by_word_of(language: str) -> Callable[..., Description]:
  """Makes the describer by the name in another language."""

  def describe(concept: Concept, rng: np.random.Generator) -> Description:
    word = concept.facts[language]
    return Description(f"the {word}", lambda c: c.facts.get(language) != word)

  return describe


def sum_of(value: int, rng: np.random.Generator) -> str:
  """Writes a sum: `"two plus one"`, or `"five minus two"`."""
  if rng.random() < 0.3 and value < 10:
    second = int(rng.integers(1, 11 - value))
    return f"{NUMBERS[value + second]} minus {NUMBERS[second]}"
  first = int(rng.integers(value + 1))
  return f"{NUMBERS[first]} plus {NUMBERS[value - first]}"


class Describer(NamedTuple):
  """A way to describe things.

  Attributes:
    fact: the key of a concept's facts that it needs; "" for none.
    describe: gives the words.
  """

  fact: str
  describe: Callable[[Concept, np.random.Generator], Description]

  def can(self, concept: Concept) -> bool:
    return not self.fact or self.fact in concept.facts


DESCRIBERS: Mapping[str, Describer] = {
  "name": Describer("", by_name),
  "kind": Describer("", by_kind),
  "use": Describer("does", by_use),
  "capital": Describer("capital", by_capital),
  "sum": Describer("value", by_sum),
  "colour": Describer("colour", by_colour),
  **{code: Describer(code, by_word_of(code)) for code in LANGUAGES},
}

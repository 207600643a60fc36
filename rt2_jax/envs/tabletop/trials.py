"""Draws trials from the tabletop's suites.

A trial is a pure function of its suite's row and name, the seed and its number,
so that all policies meet the same trials.

A trial's options are the JSON form of `EpisodeOptions` without the instruction,
and "described": "target" or "reference", the object that the suite is about.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rt2_jax.envs.tabletop import instructions
from rt2_jax.envs.tabletop.descriptions import DESCRIBERS, Describer
from rt2_jax.envs.tabletop.environment import EpisodeOptions
from rt2_jax.envs.tabletop.instructions import Task
from rt2_jax.envs.tabletop.pictures import Concept, Pictures
from rt2_jax.envs.tabletop.suites import Suite
from rt2_jax.errors import UserError
from rt2_jax.rollouts.trial import Trial


def task(trial: Trial) -> Task:
  """Reads a trial's task."""
  return Task(**trial.options["task"])


def with_task(trial: Trial, other: Task) -> Trial:
  """Returns a trial with another task in the same scene."""
  options = {**trial.options, "task": dataclasses.asdict(other)}
  return trial._replace(options=options)


def reset_options(trial: Trial) -> dict[str, Any]:
  """Returns the options of the environment's reset."""
  look = {n: trial.options[n] for n in ("style", "background", "environment")}
  return {
    "task": task(trial),
    "instruction": trial.instruction,
    "distractors": tuple(trial.options["distractors"]),
    **look,
  }


def draw(
  suites: Sequence[Suite], pictures: Pictures, count: int, seed: int
) -> list[Trial]:
  """Draws `count` trials of each suite, round by round.

  Args:
    suites: what to draw from.
    pictures: all things that there are.
    count: of each suite; the first n are the same for every count.
    seed: gives other trials.

  Raises:
    UserError: a row that no things fit.
  """
  for suite in suites:
    for family in suite.families:
      instructions.check_family(family)
  drawn = {s.name: _draw_suite(s, pictures, count, seed) for s in suites}
  return [
    trial
    for together in zip(*drawn.values(), strict=True)
    for trial in together
  ]


def _draw_suite(
  suite: Suite, pictures: Pictures, count: int, seed: int
) -> Iterator[Trial]:
  for number in range(count):
    # A suite's name, not its place: a new row changes no other's episodes.
    key = (seed, zlib.crc32(suite.name.encode()), number)
    rng = np.random.default_rng(key)
    family = suite.families[number % len(suite.families)]
    env_seed = int(rng.integers(2**31))
    drawn = dataclasses.asdict(_draw_options(suite, family, pictures, rng))
    described = suite.described if family.startswith("place") else "target"
    instruction = drawn.pop("instruction")
    options = {**drawn, "described": described}
    tags = {"family": family}
    yield Trial(suite.name, number, env_seed, instruction, options, tags)


def _draw_options(
  suite: Suite, family: str, pictures: Pictures, rng: np.random.Generator
) -> EpisodeOptions:
  """Draws what a trial of a family shows, and how it is asked for."""
  places = family.startswith("place")
  described = suite.described if places else "target"
  parts, others, words = _draw_things(suite, places, pictures, rng)
  side = tuple(instructions.SIDES)[int(rng.integers(len(instructions.SIDES)))]
  drawn = Task(
    family,
    parts["target"].name,
    parts["reference"].name if places else "",
    side if family == "push" else "",
  )
  return EpisodeOptions(
    drawn,
    instructions.instruct(drawn, rng, **{described: words}),
    tuple(c.name for c in others),
    suite.style,
    suite.backgrounds[int(rng.integers(len(suite.backgrounds)))],
    suite.environments[int(rng.integers(len(suite.environments)))],
  )


def _draw_things(
  suite: Suite,
  places: bool,
  pictures: Pictures,
  rng: np.random.Generator,
) -> tuple[dict[str, Concept], list[Concept], str]:
  """Draws target, reference, other things, and words for the described."""
  describer = DESCRIBERS[suite.words[int(rng.integers(len(suite.words)))]]
  about = suite.described

  def one_of(kind: str, fits: Callable[[Concept], bool]) -> Concept:
    things = getattr(suite, f"{kind}s")
    known = pictures.concepts.values()
    return _pick(suite, [c for c in known if things.has(c) and fits(c)], rng)

  first = one_of(about, lambda c: _can_describe(c, describer))
  words = describer.describe(first, rng)
  shown = [first]

  def another(kind: str) -> Concept:
    shown.append(
      one_of(
        kind,
        lambda c: words.excludes(c) and not any(_is_a(c, s) for s in shown),
      )
    )
    return shown[-1]

  parts = {about if places else "target": first}
  if places:
    other = "target" if about == "reference" else "reference"
    parts[other] = another(other)
  count = int(rng.integers(*suite.distractors, endpoint=True))
  # As `tasks.lay` has it: the first lies there as the reference does.
  kinds = ("reference" if places else about, "target")
  return parts, [another(kinds[i % 2]) for i in range(count)], words.text


def _can_describe(concept: Concept, describer: Describer) -> bool:
  """Tells whether a fact describes it and is not its name ("croissant")."""
  fact = str(concept.facts.get(describer.fact, ""))
  return describer.can(concept) and fact.lower() != concept.name.lower()


def _is_a(concept: Concept, other: Concept) -> bool:
  """Tells whether one is a kind of the other: a green apple, an apple."""
  return set(other.name.split()) <= set(concept.name.split())


def _pick(
  suite: Suite, concepts: Sequence[Concept], rng: np.random.Generator
) -> Concept:
  if not concepts:
    raise UserError(
      f"got suite {suite.name!r}, which no picture fits; widen the row's "
      "targets, references or words"
    )
  return concepts[int(rng.integers(len(concepts)))]

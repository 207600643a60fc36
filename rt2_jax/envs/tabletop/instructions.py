"""Writes tasks as instructions in many words, and parses instructions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from rt2_jax.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Task:
  """What is to be done.

  Attributes:
    family: a key of `TEMPLATES`.
    target: the object to act on.
    reference: where to put it: the mat or the block; "" in other families.
    side: where to push it, a key of `SIDES`; "" in other families.
  """

  family: str
  target: str
  reference: str = ""
  side: str = ""


# The first is the plainest. Each fits one family only.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
  "move_to": (
    "move to the {target}",
    "go to the {target}",
    "reach for the {target}",
    "hover over the {target}",
  ),
  "pick": (
    "pick up the {target}",
    "pick the {target}",
    "lift the {target}",
    "grab the {target}",
  ),
  "place_on": (
    "put the {target} on the {reference}",
    "place the {target} on the {reference}",
    "set the {target} down on the {reference}",
    "drop the {target} onto the {reference}",
  ),
  "place_next_to": (
    "put the {target} next to the {reference}",
    "place the {target} beside the {reference}",
    "move the {target} near the {reference}",
    "bring the {target} close to the {reference}",
  ),
  "push": (
    "push the {target} to the {side}",
    "slide the {target} to the {side}",
    "shove the {target} towards the {side}",
    "push the {target} over to the {side}",
  ),
}
FAMILIES = tuple(TEMPLATES)

# Seen from the camera, which stands in front of the table.
SIDES: Mapping[str, tuple[str, ...]] = {
  "left": ("left", "left side"),
  "right": ("right", "right side"),
  "back": ("back", "far side"),
  "front": ("front", "near side"),
}


def check_family(family: str) -> str:
  """Returns it; raises UserError for an unknown one."""
  if family not in TEMPLATES:
    raise unknown_name("task family", family, FAMILIES)
  return family


def instruct(
  task: Task,
  rng: np.random.Generator | None = None,
  target: str = "",
  reference: str = "",
) -> str:
  """Writes the instruction in random words, or in the plainest without `rng`.

  Args:
    task: what is to be done.
    rng: chooses among the templates.
    target: what the object is called, such as "the one that barks", instead of
      "the" and its name.
    reference: likewise.
  """
  choices = TEMPLATES[check_family(task.family)]
  sides = SIDES.get(task.side, ("",))
  template = choices[0 if rng is None else rng.integers(len(choices))]
  side = sides[0 if rng is None else rng.integers(len(sides))]
  for part, words in (("target", target), ("reference", reference)):
    if words:
      template = template.replace(f"the {{{part}}}", words)
  return template.format(
    target=task.target, reference=task.reference, side=side
  )


def parse(instruction: str, names: Iterable[str]) -> Task:
  """Parses an instruction into the task that it asks for.

  Args:
    instruction: in the words of `TEMPLATES`.
    names: of all objects there are.

  Raises:
    UserError: other words, or an object or a side that is not known.
  """
  names = list(names)
  words = " ".join(instruction.split())
  error = None
  for family, templates in TEMPLATES.items():
    for template in templates:
      match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>.+)", template), words)
      if match is None:
        continue
      try:
        return _understand(family, match.groupdict(), names)
      except UserError as unknown:
        error = error or unknown
  if error is not None:
    raise error
  known = "; ".join(templates[0] for templates in TEMPLATES.values())
  raise UserError(
    f"got instruction {instruction!r}, expected words such as: {known}; pass "
    "the task beside an instruction in other words"
  )


def _understand(
  family: str, words: Mapping[str, str], names: list[str]
) -> Task:
  for part in ("target", "reference"):
    if part in words and words[part] not in names:
      raise unknown_name("object of the instruction", words[part], names)
  side = words.get("side", "")
  for known, synonyms in SIDES.items():
    if side in synonyms:
      side = known
  if side and side not in SIDES:
    raise unknown_name(
      "side", side, [s for all_ in SIDES.values() for s in all_]
    )
  return Task(family, words["target"], words.get("reference", ""), side)

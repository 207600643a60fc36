"""Filters: the episodes and steps of a source that are left out.

Shapes: n steps that a dataset's function keeps, D action dimensions.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.errors import UserError
from rt2_jax.fields import construct
from rt2_jax.input_pipeline import records
from rt2_jax.input_pipeline.episodes import (
  STILL,
  Canonical,
  is_displacement,
)

_STATES = ("open", "close")  # units of what a gripper holds


@dataclasses.dataclass(frozen=True)
class Filters:
  """The episodes and steps that an index keeps.

  Attributes:
    episodes: value that a feature of the episode must have, by its name, e.g.
      `{"aspects/success": True}`; a list of values means any of them; a text
      may hold `*` and `?`, as in `{"episode_metadata/file_path": "*kitchen*"}`.
    not_episodes: values of the episodes to leave out, likewise, e.g.
      `{"episode_metadata/episode_id": [17, 23]}`.
    drop_noops: leave out steps that neither move nor change anything else.
    text_length: least and largest number of characters of an instruction
      without the spaces around it; [1, 200] leaves out empty ones. [] keeps
      all.
  """

  episodes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  not_episodes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  drop_noops: bool = False
  text_length: Sequence[int] = ()

  def check(self, space: ActionSpace):
    """Raises UserError where nothing tells which actions stand still."""
    unclear = [
      d for d in space.dimensions if not (is_displacement(d) or _is_state(d))
    ]
    if self.drop_noops and unclear:
      named = ", ".join(f"{d.name!r} ({d.unit!r})" for d in unclear)
      raise UserError(
        f"got filters.drop_noops for action space {space.name!r}, of whose "
        f"dimensions {named} nothing tells when they stand still; expected "
        "displacements named like 'dx' or 'dyaw' in m or rad, speeds in m/s or "
        "rad/s, or a gripper; set filters.drop_noops = False"
      )

  def keep_episode(self, record: records.Record) -> bool:
    """Tells whether an episode has the wanted values and no unwanted one."""
    wanted = (_has(record, *item) for item in self.episodes.items())
    unwanted = (_has(record, *item) for item in self.not_episodes.items())
    return all(wanted) and not any(unwanted)

  def keep_steps(self, canonical: Canonical, space: ActionSpace) -> np.ndarray:
    """Finds the steps to keep, bool[n]."""
    kept = np.ones(len(canonical.action), bool)
    if self.text_length:
      low, high = self.text_length
      lengths = [len(text.strip()) for text in canonical.instruction]
      kept &= (low <= np.asarray(lengths)) & (np.asarray(lengths) <= high)
    if self.drop_noops:
      kept &= _moves(canonical.action, space)
    return kept


def _moves(action: np.ndarray, space: ActionSpace) -> np.ndarray:
  """Finds actions that move 0.1 mm or mrad or change something, bool[n]."""
  moves = np.array([is_displacement(d) for d in space.dimensions])
  limits = np.array(
    [STILL[d.unit] for d in space.dimensions if is_displacement(d)]
  )
  still = (np.abs(action[:, moves]) < limits).all(-1)
  before = np.concatenate([action[:1], action[:-1]])
  same = (action[:, ~moves] == before[:, ~moves]).all(-1)
  return ~(still & same)


def make_filters(fields: Mapping[str, Any]) -> Filters:
  """Filters as a config names them.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  filters = construct(Filters, "filters.", fields)
  if filters.drop_noops not in (True, False):
    raise UserError(
      f"got filters.drop_noops = {filters.drop_noops!r}, expected True or False"
    )
  length = filters.text_length
  whole = all(isinstance(bound, int) for bound in length)
  if length and not (
    whole and len(length) == 2 and 0 <= length[0] <= length[1]
  ):
    raise UserError(
      f"got filters.text_length = {list(length)}, expected the least and the "
      "largest number of characters, such as [1, 200], or []"
    )
  return filters


def _is_state(d: Dimension) -> bool:
  """Tells whether the robot acts where this dimension changes."""
  return d.kind == "discrete" or d.unit in _STATES


def _has(record: records.Record, name: str, wanted: Any) -> bool:
  """Tells whether a feature of an episode has a value, or one of several.

  Raises:
    UserError: the episode has no such feature, or one of another kind.
  """
  texts = record.texts(name)
  values = texts or record.numbers(name).tolist()
  if not values:
    raise UserError(
      f"{record.where}: got no value in {name!r}, which a filter "
      "compares; remove this filter or this episode"
    )
  several = wanted if isinstance(wanted, (list, tuple)) else [wanted]
  kind = str if texts else (bool, int, float)
  wrong = [value for value in several if not isinstance(value, kind)]
  if wrong:
    raise UserError(
      f"{record.where}: got {values[0]!r} in {name!r}, expected a value like "
      f"the filter's {wrong[0]!r}, with which it cannot be equal; change the "
      f"filter to a {'text' if texts else 'number'}"
    )
  return any(_matches(values[0], value) for value in several)


def _matches(found: str | float, wanted: str | float) -> bool:
  """Compares a feature's value with another one, or with a pattern."""
  if isinstance(found, str):
    # In a file's name a bracket is one.
    return fnmatch.fnmatchcase(found, wanted.replace("[", "[[]"))
  if isinstance(found, float):
    return found == np.float32(wanted)  # as it was recorded
  return found == wanted

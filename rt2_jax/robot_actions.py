"""What becomes of a policy's actions before a robot carries them out.

Shapes: H actions of a chunk (the horizon), D dimensions of an action.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rt2_jax.errors import UserError

_TRANSLATION = ("dx", "dy", "dz")
_ROTATION = ("droll", "dpitch", "dyaw")
_GRIPPERS = ("open", "close")  # units of their dimensions
_LIMITED = {  # what a limit is of, and in which unit
  "max_speed": (_TRANSLATION, "m"),
  "max_turn": (_ROTATION, "rad"),
  "workspace": (_TRANSLATION, "m"),
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a robot may do, whatever its policy says.

  Attributes:
    names: of the dimensions of an action.
    low: least value of each.
    high: the largest.
    max_speed: metres per second.
    max_turn: radians per second.
    workspace: least and largest x y z of the hand in metres; None: anywhere.
  """

  names: tuple[str, ...]
  low: np.ndarray
  high: np.ndarray
  max_speed: float = math.inf
  max_turn: float = math.inf
  workspace: tuple[np.ndarray, np.ndarray] | None = None

  @classmethod
  def of(cls, metadata: Mapping[str, Any], **limits: Any) -> Limits:
    """Takes an action's bounds from a service's metadata.

    Raises:
      UserError: a limit of motions that these actions do not have, or have in
        another unit.
    """
    names = tuple(metadata["action_names"])
    units = dict(zip(names, metadata["action_units"], strict=True))
    for limit, value in limits.items():
      if value is not None and np.isfinite(value).all():
        _check_limited(limit, units)
    low, high = metadata["action_low"], metadata["action_high"]
    return cls(names, np.float32(low), np.float32(high), **limits)

  def apply(
    self, action: np.ndarray, position: np.ndarray | None, period_s: float
  ) -> np.ndarray:
    """Returns the nearest action that is allowed, float32[D].

    A motion that is too fast keeps its direction. One that would leave the
    workspace ends at its wall. A hand outside comes back, no faster than it may
    move.

    Raises:
      UserError: an action of other numbers, or a workspace and a robot that
        does not know where it is.
    """
    numbers = _finite(action, self.names, "an action")
    action = self._bounded(numbers.astype(np.float32), period_s)
    if self.workspace is None:
      return action
    if position is None:
      raise UserError(
        "got a workspace for a robot without a position, expected x y z; "
        "return it from its method `position`"
      )
    position = _finite(position, ("x", "y", "z"), "a robot's position")
    places = [self.names.index(name) for name in _TRANSLATION]
    inside = np.clip(position + action[places], *self.workspace)
    action[places] = inside - position
    return self._bounded(action, period_s)

  def _bounded(self, action: np.ndarray, period_s: float) -> np.ndarray:
    """Clips an action, float32[D], and then slows its motions."""
    action = np.clip(action, self.low, self.high)
    for names, most in (
      (_TRANSLATION, self.max_speed * period_s),
      (_ROTATION, self.max_turn * period_s),
    ):
      places = [i for i, name in enumerate(self.names) if name in names]
      length = float(np.linalg.norm(action[places]))
      if length > most:
        action[places] *= most / length
    return action


def _check_limited(limit: str, units: Mapping[str, str]) -> None:
  """Compares a limit with the units of an action's numbers, by name.

  Raises:
    UserError: the limit would hold nothing back.
  """
  names, unit = _LIMITED[limit]
  found = [units[name] for name in names if name in units]
  is_whole = len(found) == len(names) or limit != "workspace"
  if set(found) != {unit} or not is_whole:
    got = ", ".join(f"{name} ({of})" for name, of in units.items())
    raise UserError(
      f"got a {limit} for actions of {got}, expected {', '.join(names)} in "
      f"{unit} among them; leave it out, and limit this robot itself"
    )


def _finite(given: Any, names: Sequence[str], what: str) -> np.ndarray:
  """Returns float64[D] that a robot can be told.

  Raises:
    UserError: another shape, NaN, or infinity: clipping lets NaN pass.
  """
  numbers = np.asarray(given, np.float64)
  if numbers.shape != (len(names),) or not np.isfinite(numbers).all():
    raise UserError(
      f"got {what} of {numbers.tolist()!s:.200}, expected {len(names)} "
      f"finite numbers: {', '.join(names)}"
    )
  return numbers


class Chunks:
  """The newest chunks, and what they say of a step."""

  def __init__(self, metadata: Mapping[str, Any], decay: float | None):
    """Starts an episode.

    Args:
      metadata: of the service; says which dimensions may be averaged: never a
        gripper, and never a number of classes, such as `terminate`.
      decay: a chunk that is k steps older weighs exp(-decay * k); None: the
        newest chunk alone counts.
    """
    self._decay = decay
    pairs = zip(
      metadata["action_values"], metadata["action_units"], strict=True
    )
    self._averaged = np.asarray(
      [not values and unit not in _GRIPPERS for values, unit in pairs]
    )
    self._chunks: list[tuple[int, np.ndarray]] = []  # the newest first

  def add(self, step: int, actions: np.ndarray) -> None:
    """Adds float32[H, D], computed for an observation of a step."""
    self._chunks.insert(0, (step, actions))

  def action(self, step: int) -> np.ndarray | None:
    """Returns the action of a step, float32[D]; None where no chunk has one."""
    self._chunks = [
      (start, each) for start, each in self._chunks if step < start + len(each)
    ]
    if not self._chunks:
      return None
    rows = np.stack([each[step - start] for start, each in self._chunks])
    if self._decay is None:
      return rows[0]
    ages = np.asarray([self._chunks[0][0] - start for start, _ in self._chunks])
    weights = np.exp(-self._decay * ages)
    mean = (weights[:, None] * rows).sum(0) / weights.sum()
    return np.where(self._averaged, mean, rows[0]).astype(np.float32)

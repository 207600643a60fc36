"""Robot actions: named dimensions with units, bounds and bins.

An `ActionSpace` says what each number of an action means in physical units;
`action_tokenizer` writes it. The papers' own spaces stand in `action_spaces`.

Numpy only: robots and converters import this file without JAX. Shapes: D
dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rt2_jax.errors import UserError, unknown_name

NUM_BINS = 256  # of a continuous dimension (paper, section 3.2)

Span = tuple[float, float]  # low, high


@dataclasses.dataclass(frozen=True)
class Dimension:
  """One number of an action.

  Attributes:
    name: what it is, e.g. "dx".
    unit: its physical unit, e.g. "m".
    low: smallest value told apart (continuous dimensions).
    high: largest value told apart (continuous dimensions).
    values: the values that exist (discrete dimensions): class i is values[i].
    first: the number that the text form prints for bin or class 0.
    at_end: the value after an episode's end; None holds the last one.
  """

  name: str
  unit: str
  low: float = 0.0
  high: float = 1.0
  values: tuple[float, ...] = ()
  first: int = 0
  at_end: float | None = 0.0

  def __post_init__(self):
    if not self.values and not self.low < self.high:
      raise UserError(
        f"dimension {self.name!r}: got bounds [{self.low}, {self.high}], "
        "expected low < high; a constant dimension needs a minimum span"
      )

  @property
  def kind(self) -> str:
    return "discrete" if self.values else "continuous"

  @property
  def size(self) -> int:
    """Number of different tokens that this dimension can take."""
    return len(self.values) or NUM_BINS

  def to_bins(self, value: np.ndarray) -> np.ndarray:
    """Quantizes float[...] to int32[...]: nearest class, or interval."""
    if self.values:
      distance = np.abs(value[..., None] - np.asarray(self.values))
      return distance.argmin(-1).astype(np.int32)
    unit = (value.astype(np.float64) - self.low) / (self.high - self.low)
    return np.clip(np.floor(unit * NUM_BINS), 0, NUM_BINS - 1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class ActionSpace:
  """Names the numbers of an action.

  Bounds may differ per dataset (`with_bounds`). An affine map in front of fixed
  bounds is the same function; bounds in metres can be read by a person.

  Attributes:
    name: of the robots or the paper.
    frame: the coordinate frame of its translations and rotations.
    dimensions: in the order in which they are written.
  """

  name: str
  frame: str
  dimensions: tuple[Dimension, ...]

  def __len__(self) -> int:
    return len(self.dimensions)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(d.name for d in self.dimensions)

  def after_end(self, last: np.ndarray) -> np.ndarray:
    """Returns the action after an episode's end, given its last, [..., D].

    It terminates, does not move, and holds the gripper.
    """
    ends = [np.nan if d.at_end is None else d.at_end for d in self.dimensions]
    return np.where(np.isnan(ends), last, ends).astype(np.float32)

  def at_rest(self) -> np.ndarray:
    """Returns the action of a robot that goes on and stands still, float32[D].

    Of discrete values the one in the middle means this; grippers are open.
    """
    return np.float32(
      [
        d.values[d.size // 2]
        if d.values
        else (d.high if d.at_end is None else d.at_end)
        for d in self.dimensions
      ]
    )

  def index(self, name: str) -> int:
    """Finds the position of a dimension; raises UserError without one."""
    if name not in self.names:
      what = f"dimension of action space {self.name!r}"
      raise unknown_name(what, name, self.names)
    return self.names.index(name)

  def with_bounds(self, bounds: Mapping[str, Sequence[float]]) -> ActionSpace:
    """Replaces [low, high] of the named dimensions.

    Raises:
      UserError: no such dimension, a discrete one, or other than two bounds.
    """
    dimensions = list(self.dimensions)
    for name, given in bounds.items():
      i = self.index(name)
      if np.shape(given) != (2,):
        raise UserError(
          f"got bounds {given!r} for {name!r}, expected two numbers, the least "
          "and the largest"
        )
      if dimensions[i].kind == "discrete":
        raise UserError(
          f"got bounds for {name!r}, which is discrete with values "
          f"{dimensions[i].values}; remove them"
        )
      low, high = map(float, given)
      dimensions[i] = dataclasses.replace(dimensions[i], low=low, high=high)
    return dataclasses.replace(self, dimensions=tuple(dimensions))

  def to_dict(self) -> dict[str, Any]:
    """Converts to the JSON form that checkpoints store."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> ActionSpace:
    """Inverts `to_dict`."""
    dimensions = tuple(
      Dimension(**{**d, "values": tuple(d["values"])})
      for d in data["dimensions"]
    )
    return cls(data["name"], data["frame"], dimensions)


def centred(limit: float) -> Span:
  """Bounds of ±limit and half a bin more: 0 is the centre of bin 127.

  With an even number of bins over ±limit, zero lies on an edge and decodes to
  half a bin: a robot told to rest would drift by 4 mm a step.
  """
  return -limit, limit * (NUM_BINS + 1) / (NUM_BINS - 1)

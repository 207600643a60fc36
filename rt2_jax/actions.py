"""Robot actions as words: named dimensions, 256 bins, text and token ids.

RT-2 writes one action as 8 integers, `terminate Δx Δy Δz Δroll Δpitch Δyaw
gripper` (paper, section 3.2). This file holds that grammar: an `ActionSpace`
says what each number means in physical units, an `ActionTokenizer` turns
actions into bins and bins into text or vocabulary ids.

Numpy only: robots and converters import this file without JAX.

Shapes: D dimensions, H actions of a chunk (the horizon), L tokens of an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rt2_jax.action_tokens import (
  NUM_BINS,
  Grammar,
  IntegerTokens,
  RareTokens,
)
from rt2_jax.errors import UserError, unknown_name

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
    """How many different tokens this dimension can take."""
    return len(self.values) or NUM_BINS


@dataclasses.dataclass(frozen=True)
class ActionSpace:
  """Named dimensions in the order in which they are written.

  `low` and `high` may differ per dataset (`with_bounds`): an affine map in
  front of a tokenizer with fixed bounds, and bounds of the dataset's own, are
  the same function, and bounds in metres can be read by a person.

  Attributes:
    name: whose robots or paper it comes from.
    frame: the coordinate frame of its translations and rotations.
    dimensions: what each number means.
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
    """Returns the action after an episode's end, given its last, float32[D].

    It terminates, does not move, and holds the gripper.
    """
    ends = (d.at_end for d in self.dimensions)
    pairs = zip(ends, last, strict=True)
    return np.float32([held if end is None else end for end, held in pairs])

  def index(self, name: str) -> int:
    """Position of dimension `name`. Raises UserError when there is none."""
    if name not in self.names:
      what = f"dimension of action space {self.name!r}"
      raise unknown_name(what, name, self.names)
    return self.names.index(name)

  def with_bounds(self, bounds: Mapping[str, Sequence[float]]) -> ActionSpace:
    """The same space with [low, high] replaced for the named dimensions.

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
    """JSON form, stored in checkpoints."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> ActionSpace:
    dimensions = tuple(
      Dimension(**{**d, "values": tuple(d["values"])})
      for d in data["dimensions"]
    )
    return cls(data["name"], data["frame"], dimensions)

  def __str__(self) -> str:
    rows = [f"action space {self.name!r}, frame: {self.frame}"]
    for d in self.dimensions:
      span = (
        "one of " + ", ".join(f"{v:g}" for v in d.values)
        if d.values
        else f"{d.low:+.4g} .. {d.high:+.4g}"
      )
      rows.append(f"  {d.name:<12} {span} {d.unit}")
    return "\n".join(rows)


def _pose_deltas(metres: Span, radians: Span) -> tuple[Dimension, ...]:
  """End-effector displacement."""
  return (
    *(Dimension("d" + a, "m", *metres) for a in "xyz"),
    *(Dimension("d" + a, "rad", *radians) for a in ("roll", "pitch", "yaw")),
  )


def _centred(limit: float) -> Span:
  """±limit, and half a bin more, so that 0 is the centre of bin 127.

  With an even number of bins over ±limit, zero lies on an edge and decodes to
  half a bin: a robot told to rest would drift by 4 mm a step.
  """
  return -limit, limit * (NUM_BINS + 1) / (NUM_BINS - 1)


def with_rt1_bounds(space: ActionSpace) -> ActionSpace:
  """Gives every centred dimension RT-1's own bounds, ±limit."""
  return space.with_bounds(
    {
      d.name: (d.low, -d.low)
      for d in space.dimensions
      if d.kind == "continuous" and (d.low, d.high) == _centred(-d.low)
    }
  )


# The paper gives the 8 fields but neither bounds nor the coding of terminate.
# Bounds are RT-1's, centred. RT-1's mode 0 is "terminate" and the paper's
# strings begin with 1 while the robot moves, so number 0 means terminate = 1.0
# (inferred). The gripper is absolute, 1 = open, as today's datasets have it.
RT2 = ActionSpace(
  "rt2",
  "robot base",
  (
    Dimension("terminate", "yes/no", values=(1.0, 0.0), at_end=1.0),
    *_pose_deltas(_centred(1.0), _centred(math.pi / 2)),
    Dimension("gripper", "open", 0.0, 1.0, at_end=None),
  ),
)

# The simulated tabletop (rt2_jax/envs/tabletop): RT-2's numbers in the small
# steps of 5 Hz, so that a bin is 0.4 mm or 2 mrad.
TABLETOP = dataclasses.replace(RT2, name="tabletop").with_bounds(
  {
    **{name: _centred(0.05) for name in ("dx", "dy", "dz")},
    **{name: _centred(0.25) for name in ("droll", "dpitch", "dyaw")},
  }
)

# RT-1's 11 tokens (robotics_transformer, trained_checkpoints/rt1main).
RT1 = ActionSpace(
  "rt1",
  "robot base",
  (
    Dimension("mode", "terminate/arm/base", values=(0.0, 1.0, 2.0)),
    *_pose_deltas((-1.0, 1.0), (-math.pi / 2, math.pi / 2)),
    Dimension("gripper_closedness", "close", -1.0, 1.0, at_end=None),
    Dimension("base_dyaw", "rad", -math.pi, math.pi),
    Dimension("base_dx", "m", -1.0, 1.0),
    Dimension("base_dy", "m", -1.0, 1.0),
  ),
)

# Language-Table: `X Y` with X, Y in -10..+10 (paper, section 4.1); the
# environment's action box is ±0.1 m, so that one unit is 1 cm (inferred).
LANGUAGE_TABLE = ActionSpace(
  "language_table",
  "table",
  tuple(
    Dimension(
      name, "m", values=tuple(i / 100 for i in range(-10, 11)), first=-10
    )
    for name in ("dx", "dy")
  ),
)


class Writing(NamedTuple):
  """How actions are written; the same for spaces that differ in bounds only.

  Attributes:
    route: how numbers become ids.
    sizes: how many different tokens each of a chunk's H * D numbers can take.
    firsts: the lowest value of each number.
  """

  route: RareTokens | IntegerTokens
  sizes: tuple[int, ...]
  firsts: tuple[int, ...]

  def grammar(self) -> Grammar:
    return self.route.grammar(self.sizes, self.firsts)


@dataclasses.dataclass(frozen=True)
class ActionTokenizer:
  """Actions in physical units <-> bins <-> text and vocabulary ids.

  An answer is a chunk of H actions, written one after the other. A continuous
  dimension is cut into 256 equal *intervals* and decoded to their centres: the
  error is at most half a bin, without bias, and `encode(decode(ids)) == ids`.
  Values outside the bounds are clipped.

  Attributes:
    space: what the numbers mean, with the bounds of one dataset.
    route: how numbers become ids, `RareTokens` or `IntegerTokens`.
    rt1_compat: bin as RT-1 does: truncate to 255 steps and decode to the
      lower edge, which drifts by half a bin. Centred bounds become RT-1's own,
      so that the tokens are RT-1's, too.
    horizon: H, actions of one answer; 1 in RT-2.
  """

  space: ActionSpace
  route: RareTokens | IntegerTokens
  rt1_compat: bool = False
  horizon: int = 1

  def __post_init__(self):
    if self.rt1_compat:
      object.__setattr__(self, "space", with_rt1_bounds(self.space))

  @functools.cached_property
  def _firsts(self) -> np.ndarray:
    firsts = [d.first for d in self.space.dimensions]
    return np.asarray(firsts * self.horizon, np.int32)

  @property
  def sizes(self) -> tuple[int, ...]:
    """How many different tokens each of a chunk's H * D numbers can take."""
    return tuple(d.size for d in self.space.dimensions) * self.horizon

  @property
  def answer_length(self) -> int:
    """Most tokens that a chunk takes, `eos` not included."""
    return self.route.answer_length(self.sizes)

  @property
  def writing(self) -> Writing:
    """What says how actions are written, whatever they mean in units."""
    return Writing(self.route, self.sizes, tuple(self._firsts.tolist()))

  @property
  def grammar(self) -> Grammar:
    return self.writing.grammar()

  def to_bins(self, action: np.ndarray) -> np.ndarray:
    """float[..., D] physical units -> int32[..., D] bins.

    Raises:
      UserError: a wrong number of dimensions, or a value that is not finite.
    """
    action = np.asarray(action)
    if action.ndim == 0 or action.shape[-1] != len(self.space):
      raise UserError(
        f"got an action of shape {action.shape}, expected [..., "
        f"{len(self.space)}]: {', '.join(self.space.names)}"
      )
    bins = np.empty(action.shape, np.int32)
    for i, d in enumerate(self.space.dimensions):
      value = action[..., i]
      if not np.isfinite(value).all():
        bad = value[~np.isfinite(value)].flat[0]
        raise UserError(
          f"got {bad} for action dimension {d.name!r}, expected a finite "
          f"number ({d.unit}); repair or drop this step"
        )
      bins[..., i] = self._quantize(value, d)
    return bins

  def _quantize(self, value: np.ndarray, d: Dimension) -> np.ndarray:
    if d.kind == "discrete":
      distance = np.abs(value[..., None] - np.asarray(d.values))
      return np.argmin(distance, -1)
    if self.rt1_compat:  # float32 throughout, as RT-1 computes it
      low, high = np.float32(d.low), np.float32(d.high)
      unit = (np.clip(value.astype(np.float32), low, high) - low) / (high - low)
      return (unit * np.float32(NUM_BINS - 1)).astype(np.int32)
    unit = (value.astype(np.float64) - d.low) / (d.high - d.low)
    return np.clip(np.floor(unit * NUM_BINS), 0, NUM_BINS - 1)

  def to_action(self, bins: np.ndarray) -> np.ndarray:
    """int[..., D] bins -> float32[..., D] physical units."""
    bins = np.asarray(bins)
    action = np.empty(bins.shape, np.float32)
    for i, d in enumerate(self.space.dimensions):
      b = bins[..., i]
      if (b < 0).any() or (b >= d.size).any():
        bad = b[(b < 0) | (b >= d.size)].flat[0]
        raise UserError(
          f"got {int(bad) + d.first} for action dimension {d.name!r}, "
          f"expected {d.first}..{d.first + d.size - 1}"
        )
      if d.kind == "discrete":
        action[..., i] = np.asarray(d.values)[b]
      else:
        unit = b / (NUM_BINS - 1) if self.rt1_compat else (b + 0.5) / NUM_BINS
        action[..., i] = d.low + unit * (d.high - d.low)
    return action

  def bin_values(self) -> np.ndarray:
    """float32[D, NUM_BINS]: the physical value of every bin, NaN where none."""
    table = np.full((len(self.space), NUM_BINS), np.nan, np.float32)
    for b in range(NUM_BINS):
      has = np.asarray([d.size > b for d in self.space.dimensions])
      values = self.to_action(np.where(has, b, 0))
      table[has, b] = values[has]
    return table

  def encode(self, chunk: np.ndarray) -> np.ndarray:
    """Writes a chunk, float[H, D] -> int32[L] ids.

    `RareTokens` also take float[..., H, D].

    Raises:
      UserError: another number of actions or dimensions, or a value that is
        not finite.
    """
    return self.encode_bins(self.to_bins(chunk))

  def encode_bins(self, bins: np.ndarray) -> np.ndarray:
    """Writes a chunk that is in bins, int[H, D]; returns as `encode` does."""
    return self.route.to_ids(self._numbers(bins), self._firsts)

  def token_counts(self, chunk: np.ndarray) -> np.ndarray:
    """float[H, D] -> int32[H * D], how many tokens each number takes.

    They add up to the ids of `encode`, with `eos` where it ends a number.
    """
    return self.route.token_counts(self._numbers(self.to_bins(chunk)))

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Reads chunks, int32[..., L] ids -> float32[..., H, D] physical units."""
    bins = self.route.to_numbers(ids, self._firsts) - self._firsts
    return self.to_action(self._chunks(bins))

  def to_text(self, chunk: np.ndarray) -> str:
    """float[H, D] -> `"1 128 91 241 5 101 127 217"`, for H = 1."""
    return " ".join(str(int(n)) for n in self._numbers(self.to_bins(chunk)))

  def _numbers(self, bins: np.ndarray) -> np.ndarray:
    """Flattens chunks, int[..., H, D] bins -> int32[..., H * D] numbers."""
    shape = np.shape(bins)
    if shape[-2:] != (self.horizon, len(self.space)):
      raise UserError(
        f"got actions of shape {shape}, expected [..., {self.horizon}, "
        f"{len(self.space)}]: the horizon, and {', '.join(self.space.names)}"
      )
    return np.reshape(bins, (*shape[:-2], -1)) + self._firsts

  def _chunks(self, bins: np.ndarray) -> np.ndarray:
    """Inverts the flattening: int[..., H * D] -> int[..., H, D]."""
    return bins.reshape(*bins.shape[:-1], self.horizon, len(self.space))

  def to_dict(self) -> dict[str, Any]:
    """JSON form, stored in checkpoints."""
    return {
      "space": self.space.to_dict(),
      "route": type(self.route).__name__,
      "route_args": dataclasses.asdict(self.route),
      "rt1_compat": self.rt1_compat,
      "horizon": self.horizon,
    }

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> ActionTokenizer:
    """The inverse of `to_dict`.

    Raises:
      UserError: `rt1_compat` with centred bounds, which an older version
        wrote: decoding with RT-1's would move the robot otherwise.
    """
    args = data["route_args"]
    if data["route"] == "RareTokens":
      route = RareTokens(tuple(args["ids"]))
    else:
      characters = tuple((c, i) for c, i in args["characters"])
      route = IntegerTokens(characters, args["eos"])
    space = ActionSpace.from_dict(data["space"])
    tokenizer = cls(space, route, data["rt1_compat"], data.get("horizon", 1))
    if tokenizer.space != space:
      raise UserError(
        f"got rt1_compat with the bounds of {space.name!r}, expected RT-1's, "
        "which are not centred; train this policy again"
      )
    return tokenizer

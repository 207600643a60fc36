"""Robot actions as words: named dimensions, 256 bins, text and token ids.

RT-2 writes one action as 8 integers, `terminate Δx Δy Δz Δroll Δpitch Δyaw
gripper` (paper, section 3.2). This file holds that grammar: an `ActionSpace`
says what each number means in physical units, an `ActionTokenizer` turns
actions into bins and bins into text or vocabulary ids. The papers' own spaces
stand in `action_spaces`.

Numpy only: robots and converters import this file without JAX. Shapes: D
dimensions, H actions of a chunk (the horizon), L tokens of an answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rt2_jax.action_tokens import (
  NUM_BINS,
  Grammar,
  IntegerTokens,
  RareTokens,
  Writing,
  route_from_dict,
  route_to_dict,
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


def with_rt1_bounds(space: ActionSpace) -> ActionSpace:
  """Gives every centred dimension RT-1's own bounds, ±limit."""
  return space.with_bounds(
    {
      d.name: (d.low, -d.low)
      for d in space.dimensions
      if d.kind == "continuous" and (d.low, d.high) == centred(-d.low)
    }
  )


@dataclasses.dataclass(frozen=True)
class ActionTokenizer:
  """Converts actions in physical units to bins, text and ids, and back.

  An answer is a chunk of H actions, one after the other. Continuous dimensions
  are clipped, cut into 256 equal *intervals* and decoded to their centres: the
  error is at most half a bin, without bias, and `encode(decode(ids)) == ids`.

  Attributes:
    space: meaning of the numbers, with the bounds of one dataset.
    route: `RareTokens` or `IntegerTokens`.
    rt1_compat: truncates to 255 steps and decodes to the lower edge, as RT-1
      does; it drifts by half a bin. Centred bounds become RT-1's own.
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
    """Numbers of tokens that each of a chunk's H * D numbers can take."""
    return tuple(d.size for d in self.space.dimensions) * self.horizon

  @property
  def answer_length(self) -> int:
    """Largest number of tokens of a chunk, `eos` not included."""
    return self.route.answer_length(self.sizes)

  @property
  def writing(self) -> Writing:
    """Everything about the written form; no units and no bounds."""
    return Writing(self.route, self.sizes, tuple(self._firsts.tolist()))

  @property
  def grammar(self) -> Grammar:
    """Automaton of the answers that are valid."""
    return self.writing.grammar()

  def to_bins(self, action: np.ndarray) -> np.ndarray:
    """Quantizes float[..., D] physical units to int32[..., D] bins.

    Raises:
      UserError: a wrong number of dimensions, or a value that is not finite.
    """
    action = np.asarray(action)
    if action.ndim == 0 or action.shape[-1] != len(self.space):
      raise UserError(
        f"got an action of shape {action.shape}, expected [..., "
        f"{len(self.space)}]: {', '.join(self.space.names)}"
      )
    bad = np.argwhere(~np.isfinite(action))
    if bad.size:
      d = self.space.dimensions[bad[0][-1]]
      raise UserError(
        f"got {action[tuple(bad[0])]} for action dimension {d.name!r}, "
        f"expected a finite number ({d.unit}); repair or drop this step"
      )
    bins = np.empty(action.shape, np.int32)
    for i, d in enumerate(self.space.dimensions):
      bins[..., i] = self._quantize(action[..., i], d)
    return bins

  def _quantize(self, value: np.ndarray, d: Dimension) -> np.ndarray:
    if d.values or not self.rt1_compat:
      return d.to_bins(value)
    low, high = np.float32(d.low), np.float32(d.high)  # throughout, as in RT-1
    unit = (np.clip(value.astype(np.float32), low, high) - low) / (high - low)
    return (unit * np.float32(NUM_BINS - 1)).astype(np.int32)

  def to_action(self, bins: np.ndarray) -> np.ndarray:
    """Dequantizes int[..., D] bins to float32[..., D] physical units."""
    bins = np.asarray(bins)
    action = np.empty(bins.shape, np.float32)
    for i, d in enumerate(self.space.dimensions):
      b = bins[..., i]
      bad = b[(b < 0) | (b >= d.size)]
      if bad.size:
        raise UserError(
          f"got {int(bad[0]) + d.first} for action dimension {d.name!r}, "
          f"expected {d.first}..{d.first + d.size - 1}"
        )
      if d.kind == "discrete":
        action[..., i] = np.asarray(d.values)[b]
      else:
        unit = b / (NUM_BINS - 1) if self.rt1_compat else (b + 0.5) / NUM_BINS
        action[..., i] = d.low + unit * (d.high - d.low)
    return action

  def bin_values(self) -> np.ndarray:
    """Tabulates every bin's physical value, float32[D, NUM_BINS], or NaN."""
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

  def draft(self, chunk: np.ndarray | None) -> np.ndarray:
    """Writes a chunk for `decode_actions` to start from, int32[L] ids.

    Args:
      chunk: float[H, D], such as the robot's last one; None: at rest.

    Raises:
      UserError: as `encode`.
    """
    if chunk is None:
      chunk = np.tile(self.space.at_rest(), (self.horizon, 1))
    ids = self.encode(chunk)
    missing = self.answer_length - len(ids)
    if not missing:
      return ids
    # Numbers of fewer digits: eos follows, as in decoding.
    return np.append(ids, np.full(missing, self.route.eos, np.int32))

  def token_counts(self, chunk: np.ndarray) -> np.ndarray:
    """Counts the tokens of each number, float[H, D] -> int32[H * D].

    The sum is the length of `encode`, with `eos` where it ends a number.
    """
    return self.route.token_counts(self._numbers(self.to_bins(chunk)))

  def decode(self, ids: np.ndarray) -> np.ndarray:
    """Reads chunks, int32[..., L] ids -> float32[..., H, D] physical units."""
    bins = self.route.to_numbers(ids, self._firsts) - self._firsts
    shape = *bins.shape[:-1], self.horizon, len(self.space)
    return self.to_action(bins.reshape(shape))

  def to_text(self, chunk: np.ndarray) -> str:
    """Writes float[H, D] as `"1 128 91 241 5 101 127 217"` (H = 1)."""
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

  def to_dict(self) -> dict[str, Any]:
    """Converts to the JSON form that checkpoints store."""
    return {
      "space": self.space.to_dict(),
      **route_to_dict(self.route),
      "rt1_compat": self.rt1_compat,
      "horizon": self.horizon,
    }

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> ActionTokenizer:
    """Inverts `to_dict`.

    Raises:
      UserError: `rt1_compat` with centred bounds, as an old version wrote.
    """
    space, route = ActionSpace.from_dict(data["space"]), route_from_dict(data)
    tokenizer = cls(space, route, data["rt1_compat"], data.get("horizon", 1))
    if tokenizer.space != space:
      raise UserError(
        f"got rt1_compat with the bounds of {space.name!r}, expected RT-1's, "
        "which are not centred; train this policy again"
      )
    return tokenizer

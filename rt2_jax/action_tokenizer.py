"""Robot actions as words: from physical units to 256 bins, text and token ids.

RT-2 writes one action as 8 integers, `terminate Δx Δy Δz Δroll Δpitch Δyaw
gripper` (paper, section 3.2). An `ActionTokenizer` turns the actions of an
`ActionSpace` into bins, and bins into text or vocabulary ids.

Numpy only: robots and converters import this file without JAX. Shapes: D
dimensions, H actions of a chunk (the horizon), L tokens of an answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from rt2_jax.action_tokens import (
  Grammar,
  IntegerTokens,
  RareTokens,
  Writing,
  route_from_dict,
  route_to_dict,
)
from rt2_jax.actions import NUM_BINS, ActionSpace, Dimension, centred
from rt2_jax.errors import UserError
from rt2_jax.ranges import at_least, below


@dataclasses.dataclass(frozen=True)
class ActionConfig:
  """Fields of a config's `actions`, see `ActionTokenizer`.

  Attributes:
    masked_fraction: of an action's tokens that training hides from the model
      and does not count, see `masked_actions`.
  """

  route: str = "rare"
  rt1_compat: bool = False
  horizon: Annotated[int, at_least(1)] = 1
  masked_fraction: Annotated[float, below(1)] = 0.0


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
    route: `RareTokens`, with NUM_BINS ids, or `IntegerTokens`.
    rt1_compat: truncates to 255 steps and decodes to the lower edge, as RT-1
      does; it drifts by half a bin. Centred bounds become RT-1's own.
    horizon: H, actions of one answer; 1 in RT-2.
  """

  space: ActionSpace
  route: RareTokens | IntegerTokens
  rt1_compat: bool = False
  horizon: int = 1

  def __post_init__(self):
    if isinstance(self.route, RareTokens) and len(self.route.ids) != NUM_BINS:
      raise UserError(
        f"got {len(self.route.ids)} action ids, expected {NUM_BINS}: one for "
        "each bin"
      )
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

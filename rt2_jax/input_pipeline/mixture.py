"""Data order: the example at (step, row) is a pure function of both.

There is no shuffle buffer and no iterator state. A batch's sources follow from
its position alone, and each source is walked through in a permutation that is
fresh in every epoch and is computed, not kept. Resuming on any number of hosts
needs one integer: the step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rt2_jax.errors import UserError, unknown_name

_WEIGHT_BITS = 20  # shares are kept in 2**-20ths: exact integer arithmetic
_ROUNDS = 6  # Feistel rounds; 4 already give a good permutation
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


# What a source's weight is multiplied by, as a power of its size.
_POWERS = {"": 0.0, "root_size": 0.5, "size": 1.0}


class Weighed(Protocol):
  """The fields of a source that give its fraction of a batch."""

  weight: float
  weight_by: str


def weigh(
  groups: Sequence[Collection[Weighed]],
  fractions: Sequence[float],
  sizes: Sequence[int],
) -> tuple[float, ...]:
  """Divides a batch among sources.

  Args:
    groups: the sources, such as those of robots and those of the web.
    fractions: of a batch, for each group.
    sizes: examples of each source, group by group.

  Returns:
    The fraction of each source.

  Raises:
    UserError: an unknown `weight_by`.
  """
  left, weights = iter(sizes), []
  for fraction, group in zip(fractions, groups, strict=True):
    own = []
    for source in group:
      if source.weight_by not in _POWERS:
        raise unknown_name("weight_by", source.weight_by, _POWERS)
      own.append(source.weight * next(left) ** _POWERS[source.weight_by])
    weights += [weight / sum(own) * fraction for weight in own]
  return tuple(weights)


class Drawn(NamedTuple):
  """The examples of some rows.

  Attributes:
    source: int32[n], the source's number.
    example: int64[n], the example's number in its source.
    epoch: int64[n], the source's passes that were finished before.
  """

  source: np.ndarray
  example: np.ndarray
  epoch: np.ndarray


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Sources drawn in fixed shares, each visited once per epoch.

  Shares hold in every stretch of the sequence, not only on average: of the
  first n examples, source s has its share of n to within one per source.

  Attributes:
    sizes: examples in each source.
    weights: share of each source, relative to the others.
    seed: another seed gives another order.
  """

  sizes: tuple[int, ...]
  weights: tuple[float, ...]
  seed: int

  def __post_init__(self):
    if len(self.sizes) != len(self.weights) or not self.sizes:
      raise UserError(
        f"got {len(self.sizes)} sources and {len(self.weights)} weights, "
        "expected one weight for each source and at least one source"
      )
    finite = np.isfinite(self.weights).all()
    if not finite or min(self.weights) <= 0 or min(self.sizes) <= 0:
      raise UserError(
        f"got weights {self.weights} and sizes {self.sizes}, expected "
        "positive numbers; remove a source that should not be used"
      )
    if not all(0 < share < 2**_WEIGHT_BITS for share in self._shares):
      raise UserError(
        f"got weights {self.weights}, with which a source would never be "
        f"drawn, expected fractions of at least 2**-{_WEIGHT_BITS}; remove the "
        "source or raise its weight"
      )

  def draw(
    self, step: int | np.ndarray, rows: np.ndarray, batch_size: int
  ) -> Drawn:
    """Draws the examples of some rows of the global batch.

    Args:
      step: training step, from 0; or int[n], that of each row.
      rows: int[n], rows of the global batch, 0 <= row < batch_size.
      batch_size: rows of the global batch.
    """
    step, rows = np.asarray(step, np.int64), np.asarray(rows, np.int64)
    position = step * batch_size + rows
    source, visit = self._sources(position)
    size = np.asarray(self.sizes, np.int64)[source]
    epoch, index = np.divmod(visit, size)
    passes = np.stack([source, epoch])
    keys, which = np.unique(passes, axis=1, return_inverse=True)
    keys = [_round_keys((self.seed, *map(int, key))) for key in keys.T]
    round_keys = np.stack(keys, 1)[:, which.ravel()]
    return Drawn(source, _permute(index, size, round_keys), epoch)

  @property
  def _shares(self) -> list[int]:
    """Fraction of each source but the last among those left, in 2**-20ths."""
    shares, remaining = [], sum(self.weights)
    for weight in self.weights[:-1]:
      shares.append(round(weight / remaining * 2**_WEIGHT_BITS))
      remaining -= weight
    return shares

  def _sources(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds source int32[n] and its earlier visits int64[n] of positions.

    The first source takes floor(p * share) of the first p positions; the
    others divide what it leaves in the same way.
    """
    source = np.full(position.shape, len(self.sizes) - 1, np.int32)
    rank = position.copy()  # position among those not yet taken
    is_open = np.ones(position.shape, bool)
    for s, share in enumerate(self._shares):
      before = rank * share >> _WEIGHT_BITS
      taken = ((rank + 1) * share >> _WEIGHT_BITS) > before
      source[is_open & taken] = s
      rank = np.where(is_open, np.where(taken, before, rank - before), rank)
      is_open &= ~taken
    return source, rank


def by_source(source: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields each source of a batch, int32[n], with its rows."""
  order = np.argsort(source, kind="stable")
  present, starts = np.unique(source[order], return_index=True)
  bounds = itertools.pairwise([*starts.tolist(), len(order)])
  for s, (first, last) in zip(present.tolist(), bounds, strict=True):
    yield s, order[first:last]


@functools.lru_cache(maxsize=4096)
def _round_keys(key: tuple[int, ...]) -> np.ndarray:
  """Derives the keys of a permutation's rounds, uint64[R]."""
  return np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)


def _permute(
  index: np.ndarray, size: np.ndarray, round_keys: np.ndarray
) -> np.ndarray:
  """Evaluates pseudorandom permutations of 0..size-1, one for each `index`.

  A Feistel network is a permutation of a power of four; values that fall
  outside `size` are sent through again until they fall inside (cycle walking),
  which keeps it a permutation.

  Args:
    index: int64[n], 0 <= index < size.
    size: int64[n], number of elements.
    round_keys: uint64[R, n], which select the permutation.

  Returns:
    int64[n].
  """
  # bits of size - 1, halved and rounded up
  bits = np.frexp(np.maximum(size - 1, 1).astype(np.float64))[1]
  half_bits = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
  mask = (np.uint64(1) << half_bits) - np.uint64(1)
  out, size = index.astype(np.uint64), size.astype(np.uint64)
  outside = np.arange(len(out))
  while outside.size:
    keys = round_keys[:, outside]
    moved = _feistel(out[outside], half_bits[outside], mask[outside], keys)
    out[outside] = moved
    outside = outside[moved >= size[outside]]
  return out.astype(np.int64)


def _feistel(
  value: np.ndarray,
  half_bits: np.ndarray,
  mask: np.ndarray,
  round_keys: np.ndarray,
) -> np.ndarray:
  """Permutes uint64[n] values below 4**half_bits once."""
  left, right = value >> half_bits, value & mask
  for round_key in round_keys:
    left, right = right, left ^ (_scramble(right ^ round_key) & mask)
  return left << half_bits | right


def uniform(*numbers: np.ndarray) -> np.ndarray:
  """Draws float64[n] in [0, 1), a pure function of n tuples of numbers.

  A generator for each tuple would cost 20 µs.

  Args:
    *numbers: int64[n] each.
  """
  bits = np.uint64(0)
  for column in numbers:
    bits = _scramble(column.astype(np.uint64) + _GOLDEN + bits)
  return (bits >> np.uint64(11)) * 2.0**-53


def _scramble(value: np.ndarray) -> np.ndarray:
  """Mixes bits by the finalizer of SplitMix64."""
  value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return value ^ (value >> np.uint64(31))

"""Records that cannot be used: how they are listed, counted and tolerated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rt2_jax.errors import UserError

_NAMED = 3  # problems that an error shows


class Unusable(NamedTuple):
  """A part of a shard that cannot be used.

  Attributes:
    problem: one line that names the place.
    record: number of its first record in the shard.
    records: how many records it spans; 0: all that follow, and how many they
      are cannot be known from the shard.
    examples: how many examples are lost, at least; 0 if `records` is.
  """

  problem: str
  record: int = 0
  records: int = 1
  examples: int = 1

  def within(self, first: int, stop: int) -> Unusable | None:
    """Cuts it down to the records first..stop-1; None if none is left."""
    start, end = max(first, self.record), min(stop, self.record + self.records)
    if start >= end:
      return None
    if end - start == self.records:
      return self
    return self._replace(
      record=start, records=end - start, examples=end - start
    )


def count(damaged: Iterable[Unusable]) -> int:
  """Counts the examples that are lost."""
  return sum(each.examples for each in damaged)


def tolerate(damaged: Sequence[Unusable], max_skipped: int):
  """Raises a UserError that names the first problems if too much is lost."""
  lost = count(damaged)
  if lost <= max_skipped:
    return
  listed = "; ".join(each.problem for each in damaged[:_NAMED])
  more = f"; and {len(damaged) - _NAMED} more" * (len(damaged) > _NAMED)
  raise UserError(
    f"got {lost} examples that cannot be used, expected at most "
    f"config.loader.max_skipped = {max_skipped}: {listed}{more}"
  )


def to_column(damaged: Iterable[Unusable]) -> np.ndarray:
  """Records as a column of an index, uint8[n]."""
  return np.frombuffer(json.dumps(list(damaged)).encode(), np.uint8)


def from_column(column: np.ndarray) -> list[Unusable]:
  """Inverts `to_column`."""
  return [Unusable(*fields) for fields in json.loads(column.tobytes())]

"""Damage tolerance: the examples that a run may lose while it reads."""

from __future__ import annotations

import logging
import math

from rt2_jax.errors import UserError

_LOG = logging.getLogger(__name__)


class Damage:
  """Examples that were left out, counted against what is tolerated.

  Attributes:
    skipped: what was wrong, a line each.
    count: how many examples that are.
  """

  def __init__(self, max_skipped: int):
    self.skipped: list[str] = []
    self.count = 0
    self._max_skipped = max_skipped

  def share(self, fraction: float):
    """Leaves a host its part of what is still tolerated, rounded up.

    So that all hosts of a run together tolerate no more than one would, but
    for the rounding.
    """
    left = self._max_skipped - self.count
    self._max_skipped = self.count + math.ceil(left * fraction)

  def skip(self, error: UserError, examples: int = 1):
    """Counts and reports examples, or raises what is wrong with them."""
    if str(error) in self.skipped:
      return  # met again in a later epoch
    if self.count + examples > self._max_skipped:
      raise error
    before, self.count = self.count, self.count + examples
    self.skipped.append(str(error))
    if before.bit_length() == self.count.bit_length():
      return  # the 1st, 2nd, 4th, 8th … are news enough
    _LOG.warning(
      "skipped %d of at most %d examples, such as %s",
      self.count,
      self._max_skipped,
      error,
    )

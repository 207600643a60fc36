"""How many damaged examples a run tolerates while it reads."""

from __future__ import annotations

import logging

from rt2_jax.errors import UserError

_LOG = logging.getLogger(__name__)


class Damage:
  """Examples that were left out, counted against what is tolerated.

  Attributes:
    skipped: what was wrong with each, a line each.
  """

  def __init__(self, max_skipped: int):
    self.skipped: list[str] = []
    self._max_skipped = max_skipped

  def skip(self, error: UserError):
    """Counts and reports an example, or raises what is wrong with it."""
    if str(error) in self.skipped:
      return  # met again in a later epoch
    if len(self.skipped) >= self._max_skipped:
      raise error
    self.skipped.append(str(error))
    count = len(self.skipped)
    if count & (count - 1):
      return  # the 1st, 2nd, 4th, 8th … are news enough
    _LOG.warning(
      "skipped %d of at most %d examples, such as %s",
      count,
      self._max_skipped,
      error,
    )

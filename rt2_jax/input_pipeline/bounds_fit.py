"""Whether an action space's bounds fit the actions that were recorded.

Shapes: N steps, D action dimensions.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from rt2_jax.actions import NUM_BINS, ActionSpace, Dimension

_LOG = logging.getLogger(__name__)

MAX_CLIPPED = 0.01  # fraction of the actions beyond either bound
MIN_BINS = 32  # that the middle 98% of the actions should fall into
_LEAST = 1e-3  # what spreads less stands still, whatever its bounds
_MOST = 200_000  # actions that are looked at


class Fit(NamedTuple):
  """How a dimension's bounds fit.

  Attributes:
    name: of the dimension.
    clipped: fraction of the actions beyond the worse of both bounds, by more
      than a bin.
    bins: how many of the 256 hold the 1st to the 99th percentile.
    span: those percentiles, in physical units.
    fits: whether that is well.
  """

  name: str
  clipped: float
  bins: int
  span: tuple[float, float]
  fits: bool


def has_bounds(d: Dimension) -> bool:
  """Tells whether a dimension's bounds are measured.

  Those of a gripper are what open and closed mean in every dataset.
  """
  return d.kind == "continuous" and d.unit not in ("open", "close")


def measure(space: ActionSpace, action: np.ndarray) -> list[Fit]:
  """Measures every dimension with bounds on float[N, D] actions."""
  action = action[:: max(1, -(-len(action) // _MOST))]
  return [
    _fit(d.name, d.low, d.high, action[:, i].astype(np.float64))
    for i, d in enumerate(space.dimensions)
    if has_bounds(d)
  ]


def _fit(name: str, low: float, high: float, values: np.ndarray) -> Fit:
  width = (high - low) / NUM_BINS
  q01, q99 = np.quantile(values, [0.01, 0.99])
  beyond = max((values < low - width).sum(), (values > high + width).sum())
  first, last = (
    int(np.clip((q - low) // width, 0, NUM_BINS - 1)) for q in (q01, q99)
  )
  bins = last - first + 1
  # With few actions a single one is more than 1%.
  fits = beyond <= MAX_CLIPPED * len(values) + 1 and (
    bins >= MIN_BINS or q99 - q01 < _LEAST
  )
  span = float(q01), float(q99)
  return Fit(name, float(beyond) / len(values), bins, span, fits)


def misfits(space: ActionSpace, action: np.ndarray) -> str:
  """Says in one line which bounds do not fit; "" where all do."""
  bad = [fit for fit in measure(space, action) if not fit.fits]
  told = [
    f"{fit.name} {fit.clipped:.1%} clipped, 98% of the rest in {fit.bins} of "
    f"{NUM_BINS} bins ({fit.span[0]:.4g} to {fit.span[1]:.4g})"
    for fit in bad
  ]
  return "; ".join(told)


def warn(path: str, space: ActionSpace, action: np.ndarray):
  """Logs which bounds of a source do not fit its actions, float32[N, D].

  Args:
    path: of the source's folder.
    space: with the source's bounds.
    action: all that were recorded.
  """
  told = misfits(space, action)
  if told:
    _LOG.warning(
      "%s: bounds do not fit the actions: %s; measure them with `python -m "
      "data.compute_stats`, name that file as the source's `statistics`, and "
      'set bounds = "q01_q99"',
      path,
      told,
    )

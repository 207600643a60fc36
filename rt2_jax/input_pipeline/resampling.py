"""Episodes at a lower rate: one step in place of several.

Shapes: n steps, m of the lower rate, D action dimensions.
"""

from __future__ import annotations

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.input_pipeline.episodes import Canonical, is_displacement


def resample(
  canonical: Canonical, steps: np.ndarray, space: ActionSpace, stride: int
) -> tuple[Canonical, np.ndarray]:
  """Joins every `stride` steps of an episode.

  Displacements add up (of rotations nearly, as they are small), speeds are
  averaged, and anything else is what the last of the joined steps has.

  Args:
    canonical: the episode.
    steps: int[n], its steps that `canonical` holds.
    space: meaning of an action's numbers.
    stride: 1 joins nothing.

  Returns:
    The episode at the lower rate, and int[m], the steps that it shows.
  """
  first = np.arange(0, len(steps), stride)
  last = np.minimum(first + stride, len(steps)) - 1
  action = canonical.action[last].copy()
  for d, dimension in enumerate(space.dimensions):
    if is_displacement(dimension):
      total = np.add.reduceat(canonical.action[:, d], first)
      is_speed = dimension.unit.endswith("/s")
      action[:, d] = total / (last - first + 1) if is_speed else total
  texts = [canonical.instruction[i] for i in first]
  plans = [canonical.plan[i] for i in first] if canonical.plan else ()
  return Canonical(texts, action, plans), steps[first]

"""Bad steps: how they are told from their metrics, and how many may be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from rt2_jax.ranges import at_least

NORMS = ("gradient_norm", "update_norm", "parameter_norm")
_DECAY = 0.95  # of the running mean of the loss, per step


@dataclasses.dataclass(frozen=True)
class DivergenceConfig:
  """Fields of a config's `divergence`.

  A step is bad when its loss or norms are not finite or exceed these bounds. A
  bad step ends the run at the next log, before anything of it is saved.

  Attributes:
    loss_spike: largest loss, in units of the running mean; 0 for any.
    gradient_norm: largest global norm of a gradient, before it is clipped; 0
      for any.
    max_skipped: steps with a bad gradient that may be left out instead; they
      leave the state as it was.
  """

  loss_spike: Annotated[float, at_least(0)] = 0.0
  gradient_norm: Annotated[float, at_least(0)] = 0.0
  max_skipped: Annotated[int, at_least(0)] = 0


class BadSteps:
  """Judges steps by their metrics, in order.

  Attributes:
    skipped: how many were left out so far.
  """

  def __init__(self, config: DivergenceConfig, window: Mapping[str, Any]):
    """Goes on from `kept` of a checkpoint; empty for a new run."""
    self._config = config
    self._mean: float | None = window.get("mean_loss")
    self.skipped: int = window.get("skipped_steps", 0)

  @property
  def kept(self) -> dict[str, Any]:
    """What a checkpoint keeps, as JSON."""
    return {"mean_loss": self._mean, "skipped_steps": self.skipped}

  def problem(self, metrics: Mapping[str, np.ndarray]) -> str:
    """Says what is wrong with a step; "" for nothing."""
    loss = float(metrics["loss"].sum() / metrics["examples"].sum())
    values = {"loss": loss} | {n: float(metrics[n]) for n in NORMS}
    bounds = dict.fromkeys(values, math.inf)
    if self._config.gradient_norm:
      bounds["gradient_norm"] = self._config.gradient_norm
    if self._config.loss_spike and self._mean is not None:
      bounds["loss"] = self._config.loss_spike * self._mean
    listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    if not all(map(math.isfinite, values.values())):
      return f"got {listed}, expected finite numbers"
    for name, bound in bounds.items():
      if values[name] > bound:
        return f"got {listed}, expected {name} of at most {bound:.4g}"
    mean = loss if self._mean is None else self._mean
    self._mean = _DECAY * mean + (1 - _DECAY) * loss
    return ""

  def may_skip(self, metrics: Mapping[str, np.ndarray]) -> bool:
    """Counts a bad step that was left out; False for one too many."""
    left_out = int(metrics.get("skipped", 0))
    self.skipped += left_out
    return left_out > 0 and self.skipped <= self._config.max_skipped

"""What a run says of itself: progress lines and TensorBoard."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorboardX
from tqdm import tqdm

from rt2_jax import optimizer
from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError
from rt2_jax.train_config import TrainConfig

_LOG = logging.getLogger(__name__)

_NORMS = ("gradient_norm", "update_norm", "parameter_norm")


class Progress:
  """Collects metrics and, every `log_every` steps, prints and writes them."""

  def __init__(
    self,
    config: TrainConfig,
    spaces: Mapping[str, ActionSpace],
    writer: tensorboardX.SummaryWriter,
    start: int,
    window: Mapping[str, Any],
  ):
    """Goes on from a checkpoint.

    Args:
      config: of the run.
      spaces: of the robot sources.
      writer: for TensorBoard.
      start: steps done.
      window: what `before_save` returned for the checkpoint; empty for a new
        run.
    """
    self._config = config
    self._spaces = spaces
    self._writer = writer
    self._schedule = optimizer.learning_rate(config.optimizer, config.num_steps)
    self._pending: list[tuple[int, dict]] = []
    self._steps = window.get("steps", 0)
    self._total = {k: np.array(v) for k, v in window.get("total", {}).items()}
    self._saved = start if start else None
    self._logged_step, self._logged_time = start, time.monotonic()

  def add(self, done: int, metrics: dict[str, jax.Array]):
    """Takes one step's metrics; waits for the devices when it logs.

    Raises:
      UserError: a loss or norm since the last log is not finite.
    """
    self._pending.append((done, metrics))
    last = done == self._config.num_steps
    if done % self._config.log_every and not last:
      return
    self.check()
    scalars = self._scalars()
    self._steps, self._total = 0, {}
    now = time.monotonic()
    steps_per_s = (done - self._logged_step) / (now - self._logged_time)
    self._logged_step, self._logged_time = done, now
    scalars["examples_per_s"] = steps_per_s * self._config.batch_size
    # Of the step that was just done.
    scalars["learning_rate"] = float(self._schedule(done - 1))
    for name, value in scalars.items():
      self._writer.add_scalar(f"train/{name}", value, done)
    self._print(done, scalars, steps_per_s)

  def check(self):
    """Waits for the pending steps, and stops a run that has diverged.

    Raises:
      UserError: a loss or norm is not finite; names the first such step.
    """
    steps = [step for step, _ in self._pending]
    fetched = jax.device_get([metrics for _, metrics in self._pending])
    self._pending = []
    for step, metrics in zip(steps, fetched, strict=True):
      self._check_finite(step, metrics)
      self._steps += 1
      for name, value in metrics.items():
        # float64: the sum of sums that a checkpoint keeps is the same number.
        value = np.asarray(value, np.float64)
        self._total[name] = self._total.get(name, 0.0) + value

  def before_save(self, done: int) -> dict[str, Any]:
    """Puts the log on disk, so that the checkpoint is never ahead of it.

    Returns:
      The metrics that are not logged yet, as JSON, for the checkpoint.

    Raises:
      UserError: see `check`.
    """
    self.check()
    self._writer.flush()
    self._saved = done
    total = {name: value.tolist() for name, value in self._total.items()}
    return {"steps": self._steps, "total": total}

  def add_evaluation(self, done: int, metrics: Mapping[str, float]):
    """Takes what was measured on held-out data after `done` steps."""
    for name, value in metrics.items():
      self._writer.add_scalar(f"eval/{name}", value, done)
    shown = (
      *("forced_accuracy", "forced_accuracy/mean", "accuracy"),
      "within_2_bins/all",
    )
    parts = [
      f"{name} {value:.3f}"
      for name, value in metrics.items()
      if name.partition("/")[2] in shown
    ]
    _LOG.info("step %d, held-out data  %s", done, "  ".join(parts))
    # The time that it took is no training step's.
    self._logged_step, self._logged_time = done, time.monotonic()

  def _check_finite(self, step: int, metrics: Mapping[str, np.ndarray]):
    values = {"loss": metrics["loss"].sum() / metrics["examples"].sum()}
    values |= {name: float(metrics[name]) for name in _NORMS}
    if all(map(math.isfinite, values.values())):
      return
    listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    saved = "none" if self._saved is None else f"step {self._saved}"
    raise UserError(
      f"step {step}: got {listed}, expected finite numbers; training has "
      f"diverged and stops, the last good checkpoint is {saved}; lower "
      "config.optimizer.learning_rate, lengthen the warm-up, or look at the "
      "data of this step with launch/show_batch.py"
    )

  def _scalars(self) -> dict[str, float]:
    """Means over the logged steps, by source and dimension.

    A source without an example in them is left out.
    """
    total, examples = self._total, self._total["examples"]
    scalars = {
      "loss": total["loss"].sum() / examples.sum(),
      **{name: total[name] / self._steps for name in _NORMS},
    }
    for m, source in enumerate(self._config.source_names):
      if not examples[m]:
        continue
      scalars[f"{source}/loss"] = total["loss"][m] / examples[m]
      accuracy = total["token_accuracy"][m] / examples[m]
      scalars[f"{source}/accuracy"] = accuracy
      scalars[f"{source}/share"] = examples[m] / examples.sum()
      if f"correct/{m}" not in total:
        continue
      accuracy = total[f"correct/{m}"] / examples[m]
      l1 = (total[f"l1/{m}"] / examples[m]).mean(0)
      for i, d in enumerate(self._spaces[source].dimensions):
        scalars[f"{source}/accuracy/{d.name}"] = accuracy[:, i].mean()
        unit = d.unit.replace("/", "_")
        scalars[f"{source}/l1/{d.name}_{unit}"] = l1[i]
      if len(accuracy) > 1:  # a chunk
        for h, mean in enumerate(accuracy.mean(1)):
          scalars[f"{source}/accuracy/action_{h}"] = mean
    return {name: float(value) for name, value in scalars.items()}

  def _print(self, done: int, scalars: dict[str, float], steps_per_s: float):
    left = (self._config.num_steps - done) / steps_per_s
    sources = "  ".join(
      f"{name}: loss {scalars[f'{name}/loss']:.3f}, "
      f"accuracy {scalars[f'{name}/accuracy']:.3f}"
      for name in self._config.source_names
      if f"{name}/loss" in scalars
    )
    _LOG.info(
      "step %d/%d  %s  %.0f examples/s  %s left",
      done,
      self._config.num_steps,
      sources,
      scalars["examples_per_s"],
      tqdm.format_interval(left),
    )

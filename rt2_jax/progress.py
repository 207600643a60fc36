"""What a run says of itself: progress lines and TensorBoard."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import jax
import numpy as np
import tensorboardX
from tqdm import tqdm

from rt2_jax import optimizer
from rt2_jax.actions import ActionSpace
from rt2_jax.train_config import TrainConfig

_LOG = logging.getLogger(__name__)


class Progress:
  """Collects metrics and, every `log_every` steps, prints and writes them."""

  def __init__(
    self,
    config: TrainConfig,
    spaces: Mapping[str, ActionSpace],
    writer: tensorboardX.SummaryWriter,
    start: int,
  ):
    self._config = config
    self._spaces = spaces
    self._writer = writer
    self._schedule = optimizer.learning_rate(config.optimizer, config.num_steps)
    self._pending: list[dict] = []
    self._logged_step, self._logged_time = start, time.monotonic()

  def add(self, done: int, metrics: dict[str, jax.Array]):
    """Takes one step's metrics; waits for the devices when it logs."""
    self._pending.append(metrics)
    last = done == self._config.num_steps
    if done % self._config.log_every and not last:
      return
    fetched = jax.device_get(self._pending)
    self._pending = []
    scalars = self._scalars(fetched)
    now = time.monotonic()
    steps_per_s = (done - self._logged_step) / (now - self._logged_time)
    self._logged_step, self._logged_time = done, now
    scalars["examples_per_s"] = steps_per_s * self._config.batch_size
    scalars["learning_rate"] = float(self._schedule(done))
    for name, value in scalars.items():
      self._writer.add_scalar(f"train/{name}", value, done)
    self._print(done, scalars, steps_per_s)

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

  def _scalars(self, steps: list[dict]) -> dict[str, float]:
    """Means over the logged steps, by source and dimension."""
    total = jax.tree.map(lambda *x: np.sum(x, 0), *steps)
    examples = np.maximum(total["examples"], 1)
    scalars = {
      "loss": total["loss"].sum() / examples.sum(),
      **{
        name: total[name] / len(steps)
        for name in ("gradient_norm", "update_norm", "parameter_norm")
      },
    }
    for m, source in enumerate(self._config.source_names):
      scalars[f"{source}/loss"] = total["loss"][m] / examples[m]
      accuracy = total["token_accuracy"][m] / examples[m]
      scalars[f"{source}/accuracy"] = accuracy
      scalars[f"{source}/share"] = total["examples"][m] / examples.sum()
      if f"correct/{m}" not in total:
        continue
      accuracy = total[f"correct/{m}"] / examples[m]
      l1 = total[f"l1/{m}"] / examples[m]
      for i, d in enumerate(self._spaces[source].dimensions):
        scalars[f"{source}/accuracy/{d.name}"] = accuracy[i]
        unit = d.unit.replace("/", "_")
        scalars[f"{source}/l1/{d.name}_{unit}"] = l1[i]
    return {name: float(value) for name, value in scalars.items()}

  def _print(self, done: int, scalars: dict[str, float], steps_per_s: float):
    left = (self._config.num_steps - done) / steps_per_s
    sources = "  ".join(
      f"{name}: loss {scalars[f'{name}/loss']:.3f}, "
      f"accuracy {scalars[f'{name}/accuracy']:.3f}"
      for name in self._config.source_names
    )
    _LOG.info(
      "step %d/%d  %s  %.0f examples/s  %s left",
      done,
      self._config.num_steps,
      sources,
      scalars["examples_per_s"],
      tqdm.format_interval(left),
    )

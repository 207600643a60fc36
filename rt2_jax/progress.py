"""What a run says of itself: progress lines, figures and pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rt2_jax import optimizer
from rt2_jax.actions import ActionSpace
from rt2_jax.divergence import NORMS, BadSteps
from rt2_jax.errors import UserError
from rt2_jax.run_log import RunLog
from rt2_jax.speed import Clock, device_memory
from rt2_jax.train_config import TrainConfig

_LOG = logging.getLogger(__name__)


class Progress:
  """Collects metrics and, every `log_every` steps, prints and writes them."""

  def __init__(
    self,
    config: TrainConfig,
    spaces: Mapping[str, ActionSpace],
    log: RunLog,
    start: int,
    window: Mapping[str, Any],
    name_records: Callable[[int], str],
    clock: Clock,
  ):
    """Goes on from a checkpoint.

    Args:
      config: of the run.
      spaces: of the robot sources.
      log: gets figures and pictures.
      start: steps done.
      window: what `before_save` returned for the checkpoint; empty for a new
        run.
      name_records: writes which records the batch of a step held, and returns
        the file.
      clock: measures the loop.
    """
    self._config = config
    self._spaces = spaces
    self._log = log
    self._schedule = optimizer.learning_rate(config.optimizer, config.num_steps)
    self._pending: list[tuple[int, dict]] = []
    self._steps = window.get("steps", 0)
    self._total = {k: np.array(v) for k, v in window.get("total", {}).items()}
    self._bad_steps = BadSteps(config.divergence, window)
    self._name_records = name_records
    self._clock = clock
    self._saved = start if start else None

  def add(self, done: int, metrics: dict[str, jax.Array]):
    """Takes one step's metrics; waits for the devices when it logs.

    Raises:
      UserError: see `check`.
    """
    self._pending.append((done, metrics))
    self._clock.compiled(done, metrics)
    last = done == self._config.num_steps
    if done % self._config.log_every and not last:
      return
    self.check()
    scalars = self._scalars() if self._steps else {}
    self._steps, self._total = 0, {}
    speed = self._clock.take(done)
    if speed:
      scalars["examples_per_s"] = speed["steps_per_s"] * self._config.batch_size
    # Of the step that was just done; the optimizer saw no skipped one.
    skipped = self._bad_steps.skipped
    scalars["learning_rate"] = float(self._schedule(done - 1 - skipped))
    if self._config.divergence.max_skipped:
      scalars["skipped_steps"] = skipped
    self._log.scalars(
      done,
      _under("train", scalars) | _under("speed", speed | device_memory()),
    )
    self._print(done, scalars, speed)

  def check(self):
    """Waits for the pending steps, and stops a run that has diverged.

    Raises:
      UserError: a step was bad, see `divergence`; names the first such step.
    """
    steps = [step for step, _ in self._pending]
    with self._clock.spent_on("device"):
      fetched = jax.device_get([metrics for _, metrics in self._pending])
    self._pending = []
    for step, metrics in zip(steps, fetched, strict=True):
      problem = self._bad_steps.problem(metrics)
      if problem:
        self._leave_out(step, metrics, problem)
        continue
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
    self._log.flush()
    self._saved = done
    total = {name: value.tolist() for name, value in self._total.items()}
    window = {"steps": self._steps, "total": total}
    return window | self._bad_steps.kept | self._clock.kept

  def add_evaluation(
    self,
    done: int,
    metrics: Mapping[str, float],
    drawings: Mapping[str, Callable[[], np.ndarray]],
  ):
    """Takes what was found on held-out data after `done` steps.

    Args:
      done: steps.
      metrics: by name.
      drawings: draw pictures uint8[H, W, 3], by name.
    """
    self._log.scalars(done, _under("eval", metrics))
    self._log.pictures(done, _under("eval", drawings))
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

  def _leave_out(
    self, step: int, metrics: Mapping[str, np.ndarray], problem: str
  ):
    """Reports a bad step; raises UserError if it may not be left out."""
    records = self._name_records(step)
    if self._bad_steps.may_skip(metrics):
      _LOG.warning(
        "step %d is left out, the %d. of at most %d: %s; its records: %s",
        step,
        self._bad_steps.skipped,
        self._config.divergence.max_skipped,
        problem,
        records,
      )
      return
    saved = "none" if self._saved is None else f"step {self._saved}"
    raise UserError(
      f"step {step}: {problem}; training has diverged and stops, the last good "
      f"checkpoint is {saved}; lower config.optimizer.learning_rate, lengthen "
      f"the warm-up, or look at the records of this step in {records} and with "
      f"launch/show_batch.py --step={step - 1}"
    )

  def _scalars(self) -> dict[str, float]:
    """Means over the logged steps, by source and dimension.

    A source without an example in them is left out.
    """
    total, examples = self._total, self._total["examples"]
    scalars = {
      "loss": total["loss"].sum() / examples.sum(),
      **{name: total[name] / self._steps for name in NORMS},
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

  def _print(
    self, done: int, scalars: dict[str, float], speed: Mapping[str, float]
  ):
    """Prints one line; a run with one source has one loss."""
    names = self._config.source_names
    parts = [
      f"{name}: loss {scalars[f'{name}/loss']:.3f}, "
      f"accuracy {scalars[f'{name}/accuracy']:.3f}"
      for name in names
      if f"{name}/loss" in scalars
    ]
    if len(parts) > 1:
      parts.insert(0, f"loss {scalars['loss']:.3f}")
    if speed:
      step_s, left = speed["step_s"], self._config.num_steps - done
      waits = ", ".join(
        f"{part} {speed[key] / step_s:.0%}"
        for part, key in (
          ("input", "input_wait_s"),
          ("host", "host_s"),
          ("devices", "device_wait_s"),
        )
      )
      parts += [f"{scalars['examples_per_s']:.0f} examples/s ({waits})"]
      parts += [f"MFU {speed['mfu']:.1%}"] if "mfu" in speed else []
      parts += [f"{tqdm.format_interval(left * step_s)} left"]
    _LOG.info("step %d/%d  %s", done, self._config.num_steps, "  ".join(parts))


def _under(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
  """Puts names into a group of TensorBoard's."""
  return {f"{group}/{name}": value for name, value in values.items()}

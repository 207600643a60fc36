"""When a run saves checkpoints, and what happens when it cannot."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rt2_jax import consensus, storage
from rt2_jax.checkpoint import CannotWriteError, Checkpoints
from rt2_jax.errors import unknown_name
from rt2_jax.train_config import TrainConfig

_LOG = logging.getLogger(__name__)


class Saver:
  """Saves by steps, by wall time, and whenever an evaluation is the best.

  A disk that takes no more does not end the run: the save is tried again at
  every log until it works. All processes decide alike.
  """

  def __init__(
    self,
    config: TrainConfig,
    checkpoints: Checkpoints,
    workdir: storage.Path,
    start: int,
    best: Mapping[str, Any],
  ):
    """Goes on from a checkpoint.

    Args:
      config: of the run.
      checkpoints: where to save.
      workdir: gets best.json.
      start: steps done.
      best: what `best` was when that checkpoint was saved; empty for a new run.
    """
    self._config = config
    self._checkpoints = checkpoints
    self._workdir = workdir
    self._saved = start
    self._saved_at = time.monotonic()
    self._problem = ""  # of the last write; "" for none
    self._is_best = False
    self.best = dict(best)
    checkpoints.best = self.best.get("step")

  def due(self, done: int) -> bool:
    """Tells whether to save after `done` steps, the same on all processes."""
    if done == self._saved:
      return False
    if done % self._config.log_every == 0 and self._asks_to_save():
      return True
    by_steps = done % self._config.checkpoint_every == 0
    return by_steps or self._is_best or done == self._config.num_steps

  def measured(self, done: int, metrics: Mapping[str, float]):
    """Compares an evaluation with the best one so far.

    Raises:
      UserError: `config.keep_best` names no metric of it.
    """
    name = self._config.keep_best.removeprefix("-")
    if not name:
      return
    if name not in metrics:
      raise unknown_name("config.keep_best", name, metrics)
    smallest = self._config.keep_best.startswith("-")
    sign = -1.0 if smallest else 1.0
    measure = {"metric": name, "smallest": smallest}
    # The best of another keep_best stays until this one has its own.
    comparable = {"smallest": smallest, **self.best}.items() >= measure.items()
    value = metrics[name]
    before = self.best["value"] if comparable else -sign * math.inf
    if sign * value > sign * before:
      self.best = {"step": done, **measure, "value": value}
      self._is_best = True

  def save(self, done: int, write: Callable[[], None], needed: bool):
    """Saves, or notes that the disk takes no more.

    Args:
      done: steps done.
      write: calls `Checkpoints.save`.
      needed: there is no later step at which to try again.

    Raises:
      CannotWriteError: it was needed.
    """
    began = time.monotonic()
    if self._is_best:
      # Later than measured where a full disk has delayed it.
      self._checkpoints.best = self.best["step"] = done
    # An earlier one may have failed, which must not fail this one.
    self._run(self._saved, self._checkpoints.wait)
    self._run(done, write)
    if needed and not self._problem:
      self._run(done, self._checkpoints.wait)
    if self._problem:
      if needed:
        raise CannotWriteError(self._problem)
      return
    self._saved, self._saved_at = done, time.monotonic()
    _LOG.info(
      "checkpoint %d: %.2f s, then written in the background",
      done,
      self._saved_at - began,
    )
    if self._is_best:
      self._is_best = False
      if jax.process_index() == 0:
        text = json.dumps(self.best, indent=2)
        storage.write(self._workdir / "best.json", text)

  def _asks_to_save(self) -> bool:
    """Tells whether time is up, or the last save has failed by now."""
    if not self._problem:
      self._run(self._saved, self._checkpoints.check)
    waited = time.monotonic() - self._saved_at
    minutes = self._config.checkpoint_minutes
    time_is_up = bool(minutes) and waited > 60 * minutes
    if self._problem:
      return True
    # Process 0's clock counts.
    return consensus.gather(str(time_is_up))[0] == "True"

  def _run(self, step: int, action: Callable[[], None]):
    """Notes on all processes whether one of them cannot write."""
    problem = ""
    try:
      action()
    except CannotWriteError as error:
      problem = str(error)
    self._problem = consensus.problems(problem)
    if self._problem:
      _LOG.error(
        "checkpoint %d is not written, the run goes on and tries again at the "
        "next log: %s",
        step,
        self._problem,
      )
      self._checkpoints.give_up()

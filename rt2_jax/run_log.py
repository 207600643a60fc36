"""The log of a run: its figures and pictures, and where they go."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rt2_jax import storage
from rt2_jax.differences import json_hash
from rt2_jax.event_files import EventFiles
from rt2_jax.trackers import Tracker, TrackingConfig


class Sink(Protocol):
  """Takes what a run says of itself."""

  def scalars(self, step: int, values: Mapping[str, float]):
    """Takes numbers by their names, such as "train/loss"."""

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]):
    """Takes pictures uint8[H, W, 3] by their names."""

  def flush(self):
    """Puts on disk what a checkpoint must not be ahead of."""

  def close(self):
    """Completes the log."""


class RunLog:
  """Hands figures and pictures to every sink; without one it does nothing."""

  def __init__(self, sinks: Sequence[Sink]):
    self._sinks = sinks

  def scalars(self, step: int, values: Mapping[str, float]):
    """Writes numbers by their names, such as "train/loss"."""
    for sink in self._sinks:
      sink.scalars(step, values)

  def pictures(
    self, step: int, drawings: Mapping[str, Callable[[], np.ndarray]]
  ):
    """Draws and writes pictures uint8[H, W, 3] by their names."""
    if self._sinks and drawings:
      drawn = {name: draw() for name, draw in drawings.items()}
      for sink in self._sinks:
        sink.pictures(step, drawn)

  def flush(self):
    """Puts on disk what a checkpoint must not be ahead of."""
    for sink in self._sinks:
      sink.flush()

  def close(self):
    for sink in self._sinks:
      sink.close()


def open_log(
  workdir: storage.Path,
  start: int,
  first_start: float,
  fields: Mapping[str, Any],
  measures: Sequence[str],
  tracking: TrackingConfig,
) -> RunLog:
  """Opens TensorBoard's event files and the config's trackers.

  Args:
    workdir: of the run; its last part names the run.
    start: steps done.
    first_start: when the run was first started, which tells it from others of
      that name.
    fields: of the run's config.
    measures: names of scalars to compare runs by.
    tracking: which trackers.

  Raises:
    UserError: the folder cannot be written, or a tracker refuses.
  """
  files = EventFiles(workdir / "tensorboard", start, fields, measures)
  told_apart = json_hash([str(workdir), first_start])[:6]
  run = re.sub(r"[^\w.-]", "_", f"{workdir.name}-{told_apart}")
  trackers = [
    Tracker(name, tracking.project, run, fields) for name in tracking.trackers
  ]
  return RunLog([files, *trackers])

"""Where the time of a run goes.

A window of steps is split into three parts of the main thread's time: waiting
for input, waiting for the devices, and the host's own work. A run whose devices
are busy waits for them most of the time.

  MFU     = useful FLOP of a step / (seconds of a step * devices * peak FLOP/s)
  goodput = seconds of the steps that were kept / seconds since the first start

Time of compilation, evaluation, saving, restarts and of steps that a crash lost
lowers the goodput and no other figure.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from rt2_jax.trace_summary import INPUT

_LOG = logging.getLogger(__name__)


class Clock:
  """Measures the main thread of a training loop."""

  def __init__(
    self, start: int, window: Mapping[str, Any], mfu_at_one_step_per_s: float
  ):
    """Goes on from a checkpoint.

    Args:
      start: steps done.
      window: `kept` of the checkpoint; empty for a new run.
      mfu_at_one_step_per_s: MFU of one step per second; 0 where the devices'
        peak is not known.

    Attributes:
      first_start: of the run, in seconds since 1970.
    """
    self.first_start = window.get("first_start", time.time())
    self._stepped = window.get("stepped_s", 0.0)
    self._mfu = mfu_at_one_step_per_s
    self._warm = False
    self._begin(start)

  def _begin(self, done: int):
    self._done, self._since = done, time.monotonic()
    self._spent = dict.fromkeys((INPUT, "device", "other"), 0.0)

  @property
  def kept(self) -> dict[str, float]:
    """What a checkpoint keeps, as JSON."""
    stepped = self._stepped + self._window_s()
    return {"first_start": self.first_start, "stepped_s": stepped}

  def inputs(self, batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches, and measures the wait for each."""
    batches = iter(batches)
    while True:
      with self.spent_on(INPUT):
        batch = next(batches, None)
      if batch is None:
        return
      yield batch

  @contextlib.contextmanager
  def spent_on(self, part: str) -> Iterator[None]:
    """Counts the body's time as "input", "device", or "other" than steps."""
    began = time.monotonic()
    try:
      with jax.profiler.TraceAnnotation(part):
        yield
    finally:
      self._spent[part] += time.monotonic() - began

  def compiled(self, done: int, result: Any):
    """Waits for the first step, which compiles, and counts from there on."""
    if self._warm:
      return
    self._warm = True
    jax.block_until_ready(result)
    _LOG.info(
      "compiled, and step %d done, in %.1f s",
      done,
      time.monotonic() - self._since,
    )
    self._begin(done)

  def take(self, done: int) -> dict[str, float]:
    """Ends a window of steps after `done`.

    Returns:
      Seconds of a step, its parts, steps_per_s, MFU and goodput; empty for a
      window without a step.
    """
    steps = done - self._done
    if not steps:
      return {}
    window = self._window_s()
    self._stepped += window
    parts = {part: self._spent[part] / steps for part in (INPUT, "device")}
    self._begin(done)
    step_s = window / steps
    found = {
      "step_s": step_s,
      "input_wait_s": parts[INPUT],
      "device_wait_s": parts["device"],
      "host_s": step_s - sum(parts.values()),
      "steps_per_s": 1 / step_s,
      "goodput": self._stepped / (time.time() - self.first_start),
    }
    return found | ({"mfu": self._mfu / step_s} if self._mfu else {})

  def _window_s(self) -> float:
    """Seconds of the window's steps so far."""
    return time.monotonic() - self._since - self._spent["other"]


def peak_bytes() -> int:
  """Reads the peak memory of the fullest device; 0 where none tells it."""
  return max(
    (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    for device in jax.local_devices()
  )


def device_memory() -> dict[str, float]:
  """Names the peak memory for the log; empty where no device tells it."""
  peak = peak_bytes()
  return {"peak_memory_gb": peak / 1e9} if peak else {}

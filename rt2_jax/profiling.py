"""Traces of a few training steps, for TensorBoard's profile plugin (xprof)."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from rt2_jax import storage
from rt2_jax.errors import UserError
from rt2_jax.trace_summary import LAST, STEP

_LOG = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
  """Reads "100:110" as the steps 100 to 109.

  Raises:
    UserError: not two numbers, the first at least 1 and below the second.
  """
  ends = [int(end) for end in text.split(":") if end.isdecimal()]
  if text.count(":") != 1 or len(ends) != 2 or not 0 < ends[0] < ends[1]:
    raise UserError(
      f"got --profile_steps={text}, expected FIRST:STOP such as 100:110, the "
      "first step and the one before which the trace ends"
    )
  return range(*ends)


def check_steps(steps: range, num_steps: int):
  """Compares the steps to trace with those of the run.

  Raises:
    UserError: the run ends before the trace does.
  """
  if steps and steps.stop > num_steps:
    raise UserError(
      f"got --profile_steps={steps.start}:{steps.stop} in a run of {num_steps} "
      f"steps, expected a STOP of at most {num_steps}: a trace ends when the "
      "step STOP begins; trace earlier steps, or raise config.num_steps"
    )


class Profiler:
  """Traces steps on process 0, into the folder of TensorBoard's log."""

  def __init__(self, folder: storage.Path, steps: range, start: int = 0):
    """Traces nothing yet.

    Args:
      folder: gets the trace.
      steps: to trace, counted from 1; an empty range traces nothing.
      start: steps done. A run that goes on within `steps` traces none of them.
    """
    if steps and steps.start <= start:
      _LOG.warning(
        "step %d, at which the trace begins, is done: nothing is traced",
        steps.start,
      )
    self._folder = folder
    self._steps = steps if jax.process_index() == 0 else range(0)
    self._made = ""
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> Profiler:
    return self

  def __exit__(self, *_):
    self._stop()

  @contextlib.contextmanager
  def step(self, number: int, before: Any) -> Iterator[None]:
    """Names a step in the trace, which it begins or ends.

    Args:
      number: of the step in the body.
      before: arrays that the devices compute until then.
    """
    if self._steps and number in (self._steps.start, self._steps.stop):
      with jax.profiler.TraceAnnotation(LAST):
        jax.block_until_ready(before)
      self._stop()
      if number == self._steps.start:
        _LOG.info("tracing steps %d to %d", number, self._steps.stop - 1)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would slow the host down
        self._made = self._stack.enter_context(tempfile.TemporaryDirectory())
        jax.profiler.start_trace(self._made, profiler_options=options)
    with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
      yield

  def _stop(self):
    if not self._made:
      return
    made, self._made = pathlib.Path(self._made), ""
    with self._stack:
      jax.profiler.stop_trace()
      for file in made.rglob("*"):
        if file.is_file():
          target = self._folder / file.relative_to(made).as_posix()
          storage.output_folder(target.parent, "--workdir")
          storage.write(target, file.read_bytes())
          _LOG.info("trace: %s", target)

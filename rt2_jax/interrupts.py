"""Requests to stop: they wait until a piece of work is whole."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_LOG = logging.getLogger(__name__)
_INTERRUPTED = 130


class StopSignals:
  """Notes SIGTERM and Ctrl-C (SIGINT), so that a loop can end on all hosts.

  A context manager; `reached` tells the loop to stop. A second Ctrl-C ends the
  process at once. With several processes a signal to any of them stops all:
  SIGTERM, which announces a preemption, is JAX's own there, and it agrees with
  the others on the step after which they stop.
  """

  def __init__(self):
    self._asked = False
    self._before: dict[int, object] = {}
    self._several = jax.process_count() > 1

  def __enter__(self) -> StopSignals:
    if threading.current_thread() is threading.main_thread():
      handlers = {signal.SIGINT: self._note}
      if not self._several:
        handlers[signal.SIGTERM] = self._note
      self._before = {s: signal.signal(s, h) for s, h in handlers.items()}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def reached(self, step: int) -> bool:
    """Tells whether the run stops after this step, the same on all processes.

    Args:
      step: steps done; every process calls this with the same steps in order.
    """
    if self._several:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _note(self, number: int, _):
    if self._asked and number == signal.SIGINT:
      os.write(2, b"interrupted twice: leaving at once\n")
      os._exit(_INTERRUPTED)
    self._asked = True
    _LOG.warning(
      "%s: stopping after this step, which is saved first; Ctrl-C %s leaves at "
      "once",
      signal.Signals(number).name,
      "again" if number == signal.SIGINT else "then",
    )
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def delayed(what: str) -> Iterator[None]:
  """Holds the first Ctrl-C (SIGINT) back until the body is done.

  The second one interrupts the body. Nothing changes within `StopSignals`, or
  outside the main thread, which alone receives signals.

  Args:
    what: the body does, for the log.

  Raises:
    KeyboardInterrupt: after the body, if there was a Ctrl-C.
  """
  active = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
  main = threading.current_thread() is threading.main_thread()
  if not main or isinstance(active, StopSignals):
    yield
    return
  came = False

  def note(*_):
    nonlocal came
    if came:
      raise KeyboardInterrupt
    came = True
    _LOG.warning("interrupted: %s first; Ctrl-C again abandons it", what)

  before = signal.signal(signal.SIGINT, note)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if came:
    raise KeyboardInterrupt

"""Ctrl-C waits until a piece of work is whole."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def delayed(what: str) -> Iterator[None]:
  """Holds the first Ctrl-C (SIGINT) back until the body is done.

  The second one interrupts the body. Outside the main thread, which alone
  receives signals, nothing changes.

  Args:
    what: the body does, for the log.

  Raises:
    KeyboardInterrupt: after the body, if there was a Ctrl-C.
  """
  if threading.current_thread() is not threading.main_thread():
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

"""Watchdog: ends a run that hangs or has lost a host, and says which.

Every process publishes how far it is through JAX's coordination service. A
thread of each process looks at all of them, so that it also sees what happens
while the main thread compiles, restores, evaluates or waits for another host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated

import jax
from jax._src import distributed  # JAX has no public name for its client

from rt2_jax.errors import START_AGAIN, first_line
from rt2_jax.ranges import more_than

_FOLDER = "rt2_jax/watchdog"


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
  """Fields of a config's `watchdog`.

  Attributes:
    stalled_s: seconds without progress after which a run is given up. It must
      be longer than the longest compilation, restore or step.
    lost_s: seconds without a sign of life after which a process is lost.
  """

  stalled_s: Annotated[float, more_than(0)] = 1800.0
  lost_s: Annotated[float, more_than(0)] = 90.0


@dataclasses.dataclass
class Seen:
  """The last sign of life of a process.

  Attributes:
    host: where it runs.
    beats: pieces of work that it has begun.
    doing: the last of them.
    alive: a number that changes while the process lives.
    since: when it last changed, by this process's clock.
  """

  host: str
  beats: int
  doing: str
  alive: int
  since: float

  def __str__(self) -> str:
    return f"on host {self.host}, last seen at {self.doing!r}"


class Watchdog:
  """Watches this process, and through the coordination service the others.

  A context manager. An error of the runtime inside it, such as a closed
  connection, is explained by the process that is lost.
  """

  def __init__(
    self, config: WatchdogConfig, leave: Callable[[int], None] = os._exit
  ):
    """Starts nothing yet; `leave` ends the process with an exit code."""
    self._config = config
    self._leave = leave
    self._poll_s = min(5.0, config.lost_s / 5, config.stalled_s / 5)
    self._me = jax.process_index()
    self._client = distributed.global_state.client
    self._state = (0, "start", True)
    self._began = time.monotonic()
    self._ticks = 0
    self._seen: dict[int, Seen] = {}
    self._heard = time.monotonic()
    self._stop = threading.Event()
    # Apart: a coordinator that hangs must not stop the judgement.
    self._threads = [
      threading.Thread(target=run, daemon=True)
      for run in (self._exchange_all, self._watch)
    ]

  def __enter__(self) -> Watchdog:
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, kind, error, trace):
    broken = isinstance(error, jax.errors.JaxRuntimeError)
    if broken and self._client is not None:
      self._explain(error)
    self._stop.set()

  def at(self, doing: str, patient: bool = False):
    """Notes progress: the main thread begins a piece of work.

    Args:
      doing: the work, for messages.
      patient: it may take as long as it likes.
    """
    self._began = time.monotonic()
    self._state = self._state[0] + 1, doing, patient

  def _exchange_all(self):
    while self._client is not None and not self._stop.is_set():
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        self._exchange()
        self._heard = time.monotonic()
      self._stop.wait(self._poll_s)

  def _watch(self):
    while not self._stop.wait(self._poll_s):
      problem = self._problem()
      if problem:
        self._give_up(problem)
        return

  def _exchange(self):
    """Publishes this process's progress, and reads that of all."""
    self._ticks += 1
    beats, doing, _ = self._state
    mine = [socket.gethostname(), beats, doing, self._ticks]
    key = f"{_FOLDER}/{self._me}"
    self._client.key_value_set(key, json.dumps(mine), allow_overwrite=True)
    found = dict(self._client.key_value_dir_get(_FOLDER))
    self._note({k.rpartition("/")[2]: v for k, v in found.items()})

  def _note(self, found: Mapping[str, str]):
    for process, text in found.items():
      host, beats, doing, alive = json.loads(text)
      before = self._seen.get(int(process))
      if before is None or before.alive != alive:
        self._seen[int(process)] = Seen(
          host, beats, doing, alive, time.monotonic()
        )

  def _problem(self) -> str:
    """Says what is wrong; "" for nothing."""
    lost = self._lost()
    if lost:
      return lost
    waited = time.monotonic() - self._began
    if self._state[2] or waited < self._config.stalled_s:
      return ""
    return (
      f"no progress for {waited:.0f} s at {self._state[1]!r}{self._behind()}; "
      "its stack follows. If this work may take longer, raise "
      "config.watchdog.stalled_s"
    )

  def _lost(self) -> str:
    if self._client is None:
      return ""
    silence = {
      process: self._heard - seen.since
      for process, seen in self._seen.items()
      if process != self._me
    }
    # Process 0 serves what the others say.
    silence[0] = max(silence.get(0, 0.0), time.monotonic() - self._heard)
    return "; ".join(
      f"process {process} is lost: nothing heard for {seconds:.0f} s, "
      f"{self._seen.get(process, 'never seen')}"
      for process, seconds in sorted(silence.items())
      if seconds > self._config.lost_s
    )

  def _behind(self) -> str:
    """Names the processes that are further back than another one."""
    furthest = max((s.beats for s in self._seen.values()), default=0)
    late = {p: s for p, s in self._seen.items() if s.beats < furthest}
    return "".join(f"; process {p} is behind {s}" for p, s in late.items())

  def _explain(self, error: BaseException):
    """Waits until a process is lost, or all were heard after the error."""
    print(f"watchdog: {first_line(error)}", file=sys.stderr, flush=True)
    began = time.monotonic()
    deadline = began + self._config.lost_s + 3 * self._poll_s
    others = set(range(jax.process_count())) - {self._me}
    while time.monotonic() < deadline and self._threads[1].is_alive():
      time.sleep(self._poll_s)
      heard = {p for p, seen in self._seen.items() if seen.since > began}
      if others <= heard:
        return

  def _give_up(self, problem: str):
    print(f"watchdog: {problem}", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr)
    self._leave(START_AGAIN)

"""Several processes on this machine, which train as several hosts would.

The processes find each other at a free port of this machine and compute on its
CPU, unless JAX_PLATFORMS names something else. In the run's folder lie `code/`,
one `process_N.log` for each, and `run.json`, by which `status`, `logs` and
`stop` find the processes from another terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil

from rt2_jax import storage
from rt2_jax.clusters import log_lines
from rt2_jax.clusters.cluster import (
  FIRST_SIGNAL_CODE,
  Cluster,
  Ending,
  Job,
  Outcome,
  failed,
  outcome_of,
)
from rt2_jax.errors import UserError

_POLL_S = 0.2
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclasses.dataclass
class Local(Cluster):
  """Processes on this machine.

  Attributes:
    folder: of the run.
    num_processes: how many train together.
    dry_run: print the commands only.
    grace_s: seconds for processes to save after SIGTERM, and to follow the
      first one that has ended.
    say: where lines are printed.
  """

  folder: pathlib.Path
  num_processes: int
  dry_run: bool = False
  grace_s: float = 60.0
  say: Callable[[str], None] = print

  def __post_init__(self):
    self._children: list[subprocess.Popen] = []
    self._started = False
    self._told = 0  # signals since a start
    self._log = log_lines.Follower(self._log_of(0))

  def create(self):
    self.say("local: this machine is already there")

  def start(self, job: Job):
    port = _free_port()
    if self.dry_run:
      self.say(f"git archive {job.code.commit} | tar -x -C {self._code}")
      for n in range(self.num_processes):
        self.say(shlex.join(self._command(job, port, n)))
      return
    if self._started and self._remembered()["stopped"]:
      return  # while this program waited to start it again
    if running := self.processes():
      raise UserError(
        f"got run {job.name!r}, whose processes still run (ids "
        f"{', '.join(str(p.pid) for p in running)}); stop them with "
        f"`pod.py stop --backend=local --name={job.name}`, or choose another "
        "--name"
      )
    job.code.unpack(self._code)
    self._log.skip_to_end()
    self._started = True
    self._remember(commit=job.code.commit, stopped=False, processes=[])
    self._told = 0
    with self._noting_signals():  # a Ctrl-C here is passed on by `wait`
      for n in range(self.num_processes):
        self._spawn(job, port, n)

  def wait(self) -> Outcome:
    if not self._children:
      return Outcome(Ending.STOPPED)
    with self._noting_signals():
      codes = self._exit_codes()
    self._children = []
    outcome = outcome_of(codes)
    if outcome is not None and outcome.ending is Ending.DONE:
      return outcome
    if self._remembered()["stopped"]:
      return Outcome(Ending.STOPPED)
    if outcome is None:
      raise self._error(codes)
    return outcome

  def recover(self):
    pass  # the next start makes new processes

  def status(self) -> str:
    known = self._remembered()
    if not known:
      return f"{self.folder}: no run has been started here"
    running = {process.pid for process in self.processes()}
    lines = [f"{self.folder}: commit {known['commit'][:12]}"]
    for n, (pid, _) in enumerate(known["processes"]):
      state = "runs" if pid in running else "has ended"
      last = log_lines.last(self._log_of(n), 1)
      lines.append(f"process {n} ({pid}) {state}: {last}")
    return "\n".join(lines)

  def logs(self):
    known = self._remembered().get("processes", [])
    if not known:
      self.say(self.status())
    for n in range(len(known)):
      self.say(f"== process {n}: {self._log_of(n)}")
      self.say(log_lines.last(self._log_of(n), 20))

  def stop(self):
    if self.dry_run:
      self.say(f"kill -TERM the processes in {self._record}")
      return
    if self._remembered():
      self._remember(stopped=True)
    processes = self.processes()
    for process in processes:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    _, left = psutil.wait_procs(processes, timeout=self.grace_s)
    for process in left:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()

  def delete(self):
    if self.dry_run:
      self.say(f"rm -r {self.folder}")
      return
    self.stop()
    shutil.rmtree(self.folder, ignore_errors=True)

  @property
  def _code(self) -> pathlib.Path:
    return self.folder / "code"

  @property
  def _record(self) -> pathlib.Path:
    return self.folder / "run.json"

  def _log_of(self, process: int) -> pathlib.Path:
    return self.folder / f"process_{process}.log"

  def _command(self, job: Job, port: int, process: int) -> list[str]:
    return [
      *(sys.executable, job.program, *job.arguments, "--multihost"),
      f"--coordinator=localhost:{port}",
      f"--num_processes={self.num_processes}",
      f"--process_id={process}",
    ]

  def _spawn(self, job: Job, port: int, process: int):
    with self._log_of(process).open("ab") as log:
      child = subprocess.Popen(
        self._command(job, port, process),
        cwd=self._code,
        env={"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
        | os.environ
        | {"PYTHONPATH": str(self._code)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C in the terminal is for this program, which passes it on once.
        start_new_session=True,
      )
    self._children.append(child)
    self._remember(
      processes=[
        (child.pid, psutil.Process(child.pid).create_time())
        for child in self._children
      ]
    )

  def _exit_codes(self) -> dict[int, int]:
    """Waits for the end; process -> exit code as a shell gives it.

    After the first end the others have `grace_s` to follow. After a kill they
    have none, for they wait for a process that will not come. A process that is
    killed for this has no code.
    """
    deadline, told = None, 0
    while True:
      told = self._pass_on(told)
      codes = {
        n: FIRST_SIGNAL_CODE - code if code < 0 else code
        for n, child in enumerate(self._children)
        if (code := child.poll()) is not None
      }
      for line in self._log.new_lines():
        self.say(line)
      if len(codes) == len(self._children):
        return codes
      if codes and deadline is None:
        deadline = time.monotonic() + self.grace_s
      killed = any(code >= FIRST_SIGNAL_CODE for code in codes.values())
      if killed or (deadline and time.monotonic() > deadline):
        self._kill_children()
        return codes
      time.sleep(_POLL_S)

  def _error(self, codes: Mapping[int, int]) -> UserError:
    process = failed(codes)[0]
    log = self._log_of(process)
    return UserError(
      f"got exit code {codes[process]} from process {process}, which another "
      f"start would meet again; its last words in {log}:\n"
      f"{log_lines.last(log, 12)}"
    )

  @contextlib.contextmanager
  def _noting_signals(self) -> Iterator[None]:
    """Counts Ctrl-C and SIGTERM, for `_pass_on`; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return

    def note(*_):
      self._told += 1

    before = {n: signal.signal(n, note) for n in _STOPPING}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _pass_on(self, told: int) -> int:
    """Stops the run at the first signal, and kills it at the second.

    Args:
      told: how many signals were passed on before.

    Returns:
      How many there are now.
    """
    if self._told > told == 0:
      self.say("stopping: the processes save first; Ctrl-C again kills them")
      self._remember(stopped=True)
      for child in self._children:
        child.terminate()
      return 1
    if self._told > told:
      self._kill_children()
    return self._told

  def _kill_children(self):
    for child in self._children:
      child.kill()
    for child in self._children:
      child.wait()

  def _remember(self, **changes: Any):
    known = self._remembered() | changes
    storage.write(self._record, json.dumps(known))

  def _remembered(self) -> dict[str, Any]:
    if not self._record.exists():
      return {}
    return json.loads(self._record.read_text())

  def processes(self) -> list[psutil.Process]:
    """The processes of the newest start that still run."""
    found = []
    for pid, created in self._remembered().get("processes", []):
      with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # Another program may have got the same id since.
        ended = process.status() == psutil.STATUS_ZOMBIE
        if process.create_time() == created and not ended:
          found.append(process)
    return found


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]

"""Steps many environments at once, in worker processes.

Drawing and TensorFlow crash each other in one process, so workers start clean,
whatever this process has loaded. A crashed or hung worker costs only the trial
it was running: it is started again, and so are the other trials it held.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from typing import Any, NamedTuple

import numpy as np

import rt2_jax
from rt2_jax.errors import UserError
from rt2_jax.observation import Observation
from rt2_jax.rollouts import wire
from rt2_jax.rollouts.trial import Benchmark, Outcome, Trial

_END_S = 5.0
_START_S = 180.0  # until the environments are made, which takes seconds
_ANSWER_S = 60.0  # a step takes milliseconds
_PICKLE = 4  # every Python that workers may run under reads it
# Another interpreter gets this package alone, and not the packages beside it:
# they were built for this one.
_PROGRAM = """
import importlib.util, sys
handle, folder = int(sys.argv[1]), sys.argv[2]
spec = importlib.util.spec_from_file_location(
  "rt2_jax", folder + "/__init__.py", submodule_search_locations=[folder]
)
sys.modules["rt2_jax"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from rt2_jax.rollouts import worker
worker.serve(handle)
"""


class Begin(NamedTuple):
  """Asks for a trial's first observation."""

  trial: Trial


class Step(NamedTuple):
  """Asks for a step with an action, float32[D]."""

  action: np.ndarray


class Expert(NamedTuple):
  """Asks for a step of the scripted expert, who carries out a trial."""

  trial: Trial


class Seen(NamedTuple):
  """An environment's reply; the outcome is None until the trial's end."""

  observation: Observation
  outcome: Outcome | None


class Broken(NamedTuple):
  """The environment threw, or its process died; says how."""

  error: str


class Lost(NamedTuple):
  """A neighbour's process died with this trial in it: begin it again."""


Request = Begin | Step | Expert
Reply = Seen | Broken | Lost


def has_ended(reply: Reply) -> bool:
  """Tells whether nothing follows in this trial."""
  if isinstance(reply, Seen):
    return reply.outcome is not None
  return isinstance(reply, Broken)


def _encode(request: Request) -> dict[str, Any]:
  if isinstance(request, Begin):
    return {"trial": request.trial._asdict()}
  if isinstance(request, Expert):
    return {"expert": request.trial._asdict()}
  return {"action": np.asarray(request.action, np.float32)}


def _decode(reply: dict[str, Any]) -> Reply:
  if "error" in reply:
    return Broken(reply["error"])
  outcome = reply["outcome"] and Outcome(**reply["outcome"])
  return Seen(Observation(**reply["observation"]), outcome)


class _Process:
  """A worker with some environments, seen from here."""

  def __init__(self, benchmark: bytes, python: str, count: int):
    """Starts it.

    Args:
      benchmark: pickled.
      python: path of the interpreter; "" for the running one.
      count: environments of the worker.
    """
    self._benchmark, self._python, self._count = benchmark, python, count
    self.control_hz = 0.0
    self._start()

  def _start(self) -> None:
    self._is_alive = True
    self._connection, theirs = Pipe()
    # One thread draws: there are as many processes as CPUs.
    variables = {"LP_NUM_THREADS": "1"} | os.environ
    if not self._python:
      variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    folder = str(pathlib.Path(rt2_jax.__file__).parent)
    command = [self._python or sys.executable, "-c", _PROGRAM]
    try:
      self._process = subprocess.Popen(
        [*command, str(theirs.fileno()), folder],
        pass_fds=[theirs.fileno()],
        env=variables,
      )
    except OSError as error:
      self._connection.close()
      raise UserError(
        f"got python {self._python!r} of the benchmark, which cannot be "
        f"started ({error.strerror}); expected the path of an interpreter"
      ) from error
    finally:
      theirs.close()
    with contextlib.suppress(OSError):  # `check` notices that it died
      self._connection.send_bytes(wire.dumps({"count": self._count}))
      self._connection.send_bytes(self._benchmark)

  def check(self) -> None:
    """Waits for the environments.

    Raises:
      UserError: the environments cannot be made, or the process died.
    """
    reply = self._receive(_START_S)
    if isinstance(reply, Broken):
      raise UserError(
        f"got no environment ({reply.error}), expected a process that can "
        "make one; its own words are above"
      )
    if "error" in reply:
      raise UserError(reply["error"])
    self.control_hz = reply["control_hz"]

  def send(self, requests: Mapping[int, Request]) -> None:
    encoded = {str(slot): _encode(r) for slot, r in requests.items()}
    # One that has died is noticed by `collect`.
    with contextlib.suppress(OSError):
      self._connection.send_bytes(wire.dumps(encoded))

  def collect(self, slots: Sequence[int]) -> dict[int, Reply]:
    """Receives its environments' replies, in the order of the requests."""
    replies: dict[int, Reply] = {}
    for slot in slots:
      reply = self._receive(_ANSWER_S)
      replies[slot] = reply if isinstance(reply, Broken) else _decode(reply)
      if not self._is_alive:
        self._start()
        self.check()
        # What had an answer already and would have gone on is lost as well.
        ended = {s: reply for s, reply in replies.items() if has_ended(reply)}
        return {s: Lost() for s in slots} | ended
    return replies

  def _receive(self, timeout_s: float) -> dict[str, Any] | Broken:
    """Receives a message; `Broken` when none comes any more."""
    try:
      if self._connection.poll(timeout_s):
        return wire.loads(self._connection.recv_bytes())
      how = f"did not answer for {timeout_s:.0f} s"
    except (EOFError, OSError):
      how = "died"
    self._is_alive = False
    self.close()
    return Broken(f"its process {how} (exit code {self._process.returncode})")

  def close(self) -> None:
    self._connection.close()
    try:
      self._process.wait(_END_S)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


class Simulations:
  """`count` environments, numbered from 0, in `num_processes` processes.

  Attributes:
    control_hz: of the environments.
  """

  def __init__(
    self, benchmark: Benchmark, count: int, num_processes: int | None = None
  ):
    """Starts the processes and waits until all environments are made.

    Args:
      benchmark: makes the environments.
      count: how many environments.
      num_processes: default: one for each CPU.

    Raises:
      UserError: a benchmark that does not pickle, an interpreter that does not
        start, or what making an environment raised, such as no library that
        draws without a screen.
    """
    num = min(count, num_processes or os.cpu_count() or 1)
    held = [len(range(i, count, num)) for i in range(num)]
    pickled = _pickle(benchmark)
    self._processes: list[_Process] = []
    try:
      for n in held:
        self._processes.append(_Process(pickled, benchmark.python, n))
      for process in self._processes:
        process.check()
    except BaseException:
      self.close()
      raise
    self.control_hz = self._processes[0].control_hz

  def exchange(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
    """Sends requests to environments, waits, and returns their replies."""
    num = len(self._processes)
    shares: list[dict[int, Request]] = [{} for _ in range(num)]
    for slot, request in requests.items():
      shares[slot % num][slot // num] = request
    busy = [i for i, share in enumerate(shares) if share]
    for i in busy:
      self._processes[i].send(shares[i])
    replies = {}
    for i in busy:
      answers = self._processes[i].collect(list(shares[i]))
      replies |= {slot * num + i: reply for slot, reply in answers.items()}
    return replies

  def close(self) -> None:
    for process in self._processes:
      process.close()

  def __enter__(self) -> Simulations:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _pickle(benchmark: Benchmark) -> bytes:
  """Pickles a benchmark for its workers.

  Raises:
    UserError: it does not pickle.
  """
  try:
    return pickle.dumps(benchmark, _PICKLE)
  except (pickle.PicklingError, AttributeError, TypeError) as error:
    raise UserError(
      f"got a benchmark {type(benchmark).__name__} that cannot be sent to "
      f"workers ({error}), expected one that pickles: keep functions without "
      "a name and open files out of its attributes"
    ) from error

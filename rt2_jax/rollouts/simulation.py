"""Many environments at once, each in one of a few processes of their own.

Drawing and TensorFlow crash each other in one process, so these start clean,
whatever this process has loaded. One that dies or hangs takes only the episode
with it that it was busy with: it is started again, and so are the others that
it held.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe, connection
from typing import Any, NamedTuple

import numpy as np

from rt2_jax.envs.tabletop import oracle, pictures
from rt2_jax.envs.tabletop.environment import TabletopConfig, TabletopEnv
from rt2_jax.envs.tabletop.instructions import Task
from rt2_jax.errors import UserError
from rt2_jax.rollouts.trials import Episode

_END_S = 5.0
_START_S = 180.0  # until the environments are made, which takes seconds
_ANSWER_S = 60.0  # a step takes milliseconds
_PROGRAM = (
  "import sys; from rt2_jax.rollouts import simulation; "
  "simulation.serve(int(sys.argv[1]))"
)


class Begin(NamedTuple):
  """Asks for an episode's first picture.

  Attributes:
    episode: which.
    task: what the scripted expert would do in it, rightly or wrongly.
  """

  episode: Episode
  task: Task


class Act(NamedTuple):
  """Asks for a step.

  Attributes:
    action: float32[8]; None for what the scripted expert would do.
  """

  action: np.ndarray | None


class Seen(NamedTuple):
  """What an environment answers.

  Attributes:
    image: uint8[S, S, 3].
    info: as of the environment.
    terminated: the policy has ended the episode.
    truncated: the step cap has.
  """

  image: np.ndarray
  info: dict[str, Any]
  terminated: bool = False
  truncated: bool = False


class Broken(NamedTuple):
  """The environment threw, or its process died; says how."""

  error: str


class Lost(NamedTuple):
  """A neighbour's process died with this episode in it: begin it again."""


Request = Begin | Act
Reply = Seen | Broken | Lost


def has_ended(reply: Reply) -> bool:
  """True where nothing follows in this episode."""
  if isinstance(reply, Seen):
    return reply.terminated or reply.truncated
  return isinstance(reply, Broken)


def make_tabletop(path: str, config: TabletopConfig) -> TabletopEnv:
  """An environment with the pictures of a file."""
  return TabletopEnv(pictures.load(path), config)


def serve(handle: int) -> None:
  """What a process does: makes its environments, then answers requests.

  Args:
    handle: of the connection that the process inherited.
  """
  # Ctrl-C ends the parent, which closes the connection; one message is enough.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with connection.Connection(handle) as parent:
    try:
      make, count = parent.recv()
      slots = [_Slot(make()) for _ in range(count)]
      parent.send(None)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
      parent.send(error)
      return
    while True:
      try:
        requests = parent.recv()
      except EOFError:
        return
      for slot, request in requests.items():
        parent.send(slots[slot].answer(request))


class _Slot:
  """One environment in its process."""

  def __init__(self, env: TabletopEnv):
    self.env = env
    self._task: Task | None = None

  def answer(self, request: Request) -> Reply:
    try:
      if isinstance(request, Begin):
        episode, self._task = request
        options = vars(episode.options)
        first, info = self.env.reset(seed=episode.seed, options=options)
        return Seen(first["image"], info)
      action = request.action
      if action is None:
        action = oracle.act(self.env.world, self._task)
      seen, _, terminated, truncated, info = self.env.step(action)
      return Seen(seen["image"], info, terminated, truncated)
    except Exception as error:
      # Whatever it was, the other episodes go on, and the report names it.
      return Broken(f"{type(error).__name__}: {error}")


class _Process:
  """A process with some environments, seen from here."""

  def __init__(self, make: Callable[[], TabletopEnv], count: int):
    self._make, self._count = make, count
    self._start()

  def _start(self) -> None:
    self._is_alive = True
    self._connection, theirs = Pipe()
    self._process = subprocess.Popen(
      [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
      pass_fds=[theirs.fileno()],
      # One thread draws: there are as many processes as CPUs.
      env={"LP_NUM_THREADS": "1"}
      | os.environ
      | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    theirs.close()
    self._connection.send((self._make, self._count))

  def check(self) -> None:
    """Waits for the environments.

    Raises:
      UserError: the process died. Others, as the environment raised them.
    """
    error = self._receive(_START_S)
    if isinstance(error, Broken):
      raise UserError(
        f"got no environment ({error.error}), expected a process that can "
        "make one; its own words are above"
      )
    if error is not None:
      raise error

  def send(self, requests: Mapping[int, Request]) -> None:
    # One that has died is noticed by `collect`.
    with contextlib.suppress(OSError):
      self._connection.send(requests)

  def collect(self, slots: Sequence[int]) -> dict[int, Reply]:
    """The answers of its environments, in the order of the requests."""
    replies: dict[int, Reply] = {}
    for slot in slots:
      replies[slot] = self._receive(_ANSWER_S)
      if not self._is_alive:
        self._start()
        self.check()
        # What had an answer already and would have gone on is lost as well.
        ended = {s: reply for s, reply in replies.items() if has_ended(reply)}
        return {s: Lost() for s in slots} | ended
    return replies

  def _receive(self, timeout_s: float) -> Any:
    """What it sends; `Broken` when nothing comes any more."""
    try:
      if self._connection.poll(timeout_s):
        return self._connection.recv()
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
  """`count` environments, numbered from 0, in `num_processes` processes."""

  def __init__(
    self,
    make: Callable[[], TabletopEnv],
    count: int,
    num_processes: int | None = None,
  ):
    """Starts the processes and waits until all environments are made.

    Args:
      make: makes an environment; goes to the processes by pickle.
      count: how many environments.
      num_processes: default: one for each CPU.

    Raises:
      UserError: no library that draws without a screen, bad pictures or a
        bad configuration.
    """
    num = min(count, num_processes or os.cpu_count() or 1)
    held = [len(range(i, count, num)) for i in range(num)]
    self._processes = [_Process(make, n) for n in held]
    try:
      for process in self._processes:
        process.check()
    except BaseException:
      self.close()
      raise

  def exchange(self, requests: Mapping[int, Request]) -> dict[int, Reply]:
    """Sends requests to environments, waits, and returns their answers."""
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

"""Requests of several robots share one device call.

A request waits at most `deadline_s` for others. The answer to a robot's request
comes before the answer to its next one. A full queue refuses at once: a robot
holds better without an action than with one that is late.

Shapes: B rows of a device call, H actions of a chunk, D dimensions, T frames.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import logging
import math
import time
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.observation import History, Observation

# `RobotPolicy.decide`: B observations and B drafts -> B plans, actions
# float32[B, H, D], passes int32[B]. A draft is the robot's last chunk, or None.
Call = Callable[
  [Sequence[Observation], Sequence[np.ndarray | None]],
  tuple[Sequence[str], np.ndarray, np.ndarray],
]

_RECENT_S = 1.0  # a robot that asked so long ago will ask again

_log = logging.getLogger(__name__)


class UnavailableError(Exception):
  """The service cannot take a request now; says why."""


class Answer(NamedTuple):
  """What a robot gets for an observation.

  Attributes:
    actions: float32[H, D] in physical units.
    plan: in words; "" from a policy that acts at once.
    queue_s: seconds from the request to the device call.
    call_s: seconds of the device call.
    rows: robots that shared it.
    passes: of the decoder over the answer; few where the draft was good.
  """

  actions: np.ndarray
  plan: str
  queue_s: float
  call_s: float
  rows: int
  passes: int


class Session:
  """What the service remembers of one robot, from its last reset on.

  Attributes:
    episode: counts the resets.
    last_chunk: float32[H, D], drafts the next answer; None before the first.
    lock: held while a request is read, so that requests keep their order.
    asked: time of the event loop at its last request.
  """

  def __init__(self, history: int):
    """`history` T: frames of each camera that the model reads."""
    self._length = history
    self.lock = asyncio.Lock()
    self.asked = -math.inf
    self.episode = -1
    self.reset()

  def reset(self) -> None:
    """Forgets an episode's frames and chunk; the next one begins."""
    self.episode += 1
    self._history = History(self._length)
    self.last_chunk: np.ndarray | None = None

  def see(self, observation: Observation) -> Observation:
    """Adds the frames of the robot's history.

    Args:
      observation: with one frame of each camera, to be remembered; or with all
        T, which stand for themselves, as the only one of a model without a
        history does.
    """
    frames = {len(each) for each in observation.images.values()}
    if frames == {self._length}:
      return observation  # kept, they would fill the memory of 1024 sessions
    return self._history.add(observation)


@dataclasses.dataclass
class _Request:
  session: Session
  observation: Observation
  answer: asyncio.Future[Answer]
  arrived: float
  episode: int


class Batcher:
  """Collects requests into device calls of known sizes.

  To be used within one event loop; device calls run in a thread of their own.
  """

  def __init__(
    self,
    call: Call,
    history: int,
    batch_sizes: Sequence[int],
    deadline_s: float = 0.005,
    queue_length: int = 64,
  ):
    """Starts no task yet; see `start`.

    Args:
      call: the policy.
      history: T, frames of each camera.
      batch_sizes: numbers of rows that the policy is compiled for.
      deadline_s: longest wait for other robots' requests.
      queue_length: requests that may wait; further ones are refused.
    """
    self._call = call
    self._history = history
    self._sizes = sorted(batch_sizes)
    self._deadline_s = deadline_s
    self._queue_length = queue_length
    self._waiting: collections.deque[_Request] = collections.deque()
    self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
    self._arrived = asyncio.Event()
    self._closing = False
    self._task: asyncio.Task | None = None
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "device")

  @property
  def num_waiting(self) -> int:
    """Requests that no device call has taken yet."""
    return len(self._waiting)

  @property
  def num_sessions(self) -> int:
    """Robots that the service remembers."""
    return len(self._sessions)

  def compile(self, observation: Observation) -> None:
    """Calls the policy once with each number of rows, before robots ask."""
    for size in self._sizes:
      self._call([observation] * size, [None] * size)

  def start(self) -> None:
    """Starts answering, in the running event loop."""
    self._task = asyncio.create_task(self._answer_all())

  def open_session(self) -> Session:
    """Begins to remember a robot, for as long as the session is referenced."""
    session = Session(self._history)
    self._sessions.add(session)
    return session

  def submit(
    self, session: Session, observation: Observation
  ) -> asyncio.Future[Answer]:
    """Queues one observation, which has been checked.

    Returns:
      The answer to come; UserError where the policy refuses the observation.

    Raises:
      UnavailableError: the queue is full, or the service is shutting down.
    """
    if self._closing:
      raise UnavailableError("the service is shutting down; ask another one")
    if len(self._waiting) >= self._queue_length:
      raise UnavailableError(
        f"got more requests than can wait here ({self._queue_length}); hold "
        "the robot, and ask again"
      )
    loop = asyncio.get_running_loop()
    session.asked = loop.time()
    request = _Request(
      session,
      session.see(observation),
      loop.create_future(),
      session.asked,
      session.episode,
    )
    self._waiting.append(request)
    self._arrived.set()
    return request.answer

  async def close(self) -> None:
    """Finishes what is running and waiting, and refuses new requests."""
    self._closing = True
    self._arrived.set()
    if self._task:
      await self._task
    self._thread.shutdown()

  async def _answer_all(self) -> None:
    while self._waiting or not self._closing:
      if not self._waiting:
        self._arrived.clear()
        await self._arrived.wait()
        continue
      await self._wait_for_others()
      if batch := self._take():
        await self._answer(batch)

  async def _wait_for_others(self) -> None:
    """Waits until a call is full, all robots ask, or the deadline is over."""
    loop = asyncio.get_running_loop()
    while self._waiting and not self._closing:
      asking = {id(request.session) for request in self._waiting}
      recently = loop.time() - _RECENT_S
      active = sum(session.asked > recently for session in self._sessions)
      if len(asking) >= min(self._sizes[-1], active):
        return
      left = self._waiting[0].arrived + self._deadline_s - loop.time()
      if left <= 0:
        return
      self._arrived.clear()
      try:
        await asyncio.wait_for(self._arrived.wait(), left)
      except TimeoutError:
        return

  def _take(self) -> list[_Request]:
    """Takes the oldest requests, one of each session; the others stay."""
    taken: dict[int, _Request] = {}
    left: collections.deque[_Request] = collections.deque()
    for request in self._waiting:
      if request.answer.done():  # its robot has gone
        continue
      key = id(request.session)
      if key in taken or len(taken) == self._sizes[-1]:
        left.append(request)
      else:
        taken[key] = request
    self._waiting = left
    return list(taken.values())

  async def _answer(self, batch: list[_Request]) -> None:
    """Answers a batch; after an error each row alone, so that one pays."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
      rows, call_s = await loop.run_in_executor(self._thread, self._run, batch)
    except Exception as error:
      if len(batch) > 1:
        for request in batch:
          await self._answer([request])
        return
      if not isinstance(error, UserError):
        _log.exception("a device call failed")
      if not batch[0].answer.done():
        batch[0].answer.set_exception(error)
      return
    for request, (plan, chunk, passes) in zip(batch, rows, strict=True):
      if request.session.episode == request.episode:
        request.session.last_chunk = chunk
      if not request.answer.done():
        queue_s = start - request.arrived
        request.answer.set_result(
          Answer(chunk, plan, queue_s, call_s, len(batch), int(passes))
        )

  def _run(self, batch: list[_Request]) -> tuple[list[tuple], float]:
    """Calls the policy with the next larger number of rows, in the thread.

    Returns:
      (plan, chunk, passes) of each request, and the seconds of the call.
    """
    start = time.monotonic()
    missing = next(s for s in self._sizes if s >= len(batch)) - len(batch)
    rows = batch + batch[:1] * missing
    decision = self._call(
      [request.observation for request in rows],
      [request.session.last_chunk for request in rows],
    )
    seconds = time.monotonic() - start
    return list(zip(*decision, strict=True))[: len(batch)], seconds

"""A policy that answers requests: all that the protocols share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.observation import Observation
from rt2_jax.serving.batcher import Answer, Batcher, Session, UnavailableError
from rt2_jax.serving.description import check_claims
from rt2_jax.serving.metrics import Metrics
from rt2_jax.serving.reading import Reader

_MAX_NAMED = 1024  # sessions that clients have named; the oldest is forgotten
_MAX_NAME = 128  # characters
_SEND_S = 5.0  # a client that does not read its answer delays the end so long


class Service:
  """Checks requests, batches them, and counts what became of them.

  Attributes:
    metadata: what it says of its policy.
    reader: checks requests.
    metrics: of Prometheus.
    ready: whether the policy is compiled and the service not shutting down.
  """

  def __init__(
    self,
    metadata: Mapping[str, Any],
    reader: Reader,
    batcher: Batcher,
  ):
    self.metadata = dict(metadata)
    self.reader = reader
    self.metrics = Metrics(
      lambda: batcher.num_waiting, lambda: batcher.num_sessions
    )
    self.ready = False
    self._batcher = batcher
    self._named: OrderedDict[str, Session] = OrderedDict()
    self._unsent = 0

  def prepare(self) -> None:
    """Compiles the policy for all numbers of robots; takes a while."""
    self._batcher.compile(self.reader.blank())

  def start(self) -> None:
    """Starts answering, in the running event loop."""
    self._batcher.start()
    self.ready = True

  async def close(self) -> None:
    """Finishes what was asked, until the answers have been sent."""
    self.ready = False
    await self._batcher.close()
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_SEND_S):
        while self._unsent:
          await asyncio.sleep(0.01)

  def open_session(self) -> Session:
    """Begins to remember a robot, for as long as the session is referenced."""
    return self._batcher.open_session()

  def named_session(self, name: Any) -> Session:
    """Finds or begins the session that a client calls by name.

    Raises:
      UserError: not a short text.
    """
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
      raise UserError(
        f"got a session of type {type(name).__name__}, expected a text of 1 to "
        f"{_MAX_NAME} characters"
      )
    if name not in self._named:
      self._named[name] = self.open_session()
    self._named.move_to_end(name)
    while len(self._named) > _MAX_NAMED:
      self._named.popitem(last=False)
    return self._named[name]

  @contextlib.contextmanager
  def answering(self) -> Iterator[None]:
    """Marks the time from a request to the end of sending its answer."""
    self._unsent += 1
    try:
      yield
    finally:
      self._unsent -= 1

  def check_claims(self, claims: Any) -> None:
    """Raises UserError where a client expects another policy."""
    check_claims(claims, self.metadata)

  async def act(
    self,
    session: Session,
    protocol: str,
    pictures: Mapping[str, Any],
    instruction: Any,
    state: Any,
  ) -> Answer:
    """Answers a request.

    Args:
      session: of the robot.
      protocol: names the row of the metrics.
      pictures: as in `Reader.read`.
      instruction: likewise.
      state: likewise.

    Raises:
      UserError: what was sent does not fit.
      UnavailableError: no request can be taken now.
    """
    start = time.monotonic()
    with self.metrics.counted(protocol):
      if not self.ready:
        raise UnavailableError("the service is not ready; ask again later")
      # Requests of one robot are read in the order in which they came.
      async with session.lock:
        observation = await self._read(pictures, instruction, state)
        pending = self._batcher.submit(session, observation)
      answer = await pending
      self.metrics.observe(answer, time.monotonic() - start)
    return answer

  async def remember(
    self,
    session: Session,
    pictures: Mapping[str, Any],
    instruction: Any,
    state: Any,
  ) -> None:
    """Keeps the frames of a step at which nothing is asked, for the history.

    Args:
      session: of the robot.
      pictures: as in `Reader.read`.
      instruction: likewise.
      state: likewise.

    Raises:
      UserError: what was sent does not fit.
    """
    async with session.lock:
      session.see(await self._read(pictures, instruction, state))

  async def _read(
    self, pictures: Mapping[str, Any], instruction: Any, state: Any
  ) -> Observation:
    """Reads all but arrays in a thread: milliseconds for which others wait."""
    read = functools.partial(self.reader.read, pictures, instruction, state)
    if all(isinstance(each, np.ndarray) for each in pictures.values()):
      return read()
    return await asyncio.to_thread(read)

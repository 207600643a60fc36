"""A robot's side of the service: numpy and openpi's protocol, no JAX.

Shapes: B robots, T frames of a camera, H actions of a chunk (the horizon), D
dimensions of an action.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import websockets
from websockets.sync import client

from rt2_jax.differences import differing
from rt2_jax.errors import UserError
from rt2_jax.observation import Observation
from rt2_jax.serving import numpy_msgpack
from rt2_jax.serving.description import (
  INSTRUCTION_KEY,
  STATE_KEY,
  UNAVAILABLE,
  image_key,
)

_OPEN_S = 10.0
_ANSWER_S = 60.0  # of a rollout, where nothing moves meanwhile


class UnansweredError(Exception):
  """The service gave no answer this time: it is full, slow, or not there."""


class Reply(NamedTuple):
  """An answer.

  Attributes:
    actions: float32[H, D] in physical units.
    plan: in words; "" from a policy that acts at once.
  """

  actions: np.ndarray
  plan: str


class RobotClient:
  """One robot's connection, made anew when it breaks.

  The service remembers the robot's frames by the name of its session, also
  across connections.
  """

  def __init__(
    self, url: str, token: str = "", expects: Mapping[str, Any] | None = None
  ):
    """Opens nothing yet.

    Args:
      url: such as ws://10.0.0.5:8000.
      token: of a service that asks for one.
      expects: fields of the service's metadata with the values that this robot
        was written for; another policy is refused by name.
    """
    self._url = url
    self._token = token
    self._expects = dict(expects or {})
    self._session = uuid.uuid4().hex
    self._socket: client.ClientConnection | None = None
    self._opened = contextlib.ExitStack()
    self._metadata: dict[str, Any] = {}

  def metadata(self) -> dict[str, Any]:
    """What the service says of its policy.

    Raises:
      UnansweredError: nobody there, or not ready.
      UserError: the token is refused, or the service is not launch/serve.py.
    """
    self._open(_OPEN_S)
    if "action_units" not in self._metadata:
      raise UserError(
        f"got a service at {self._url} that does not say what its actions mean "
        f"(metadata {self._metadata!r:.200}), expected launch/serve.py"
      )
    return self._metadata

  def act(
    self,
    observation: Observation,
    reset: bool = False,
    timeout_s: float = _ANSWER_S,
  ) -> Reply:
    """Asks for the next actions.

    Args:
      observation: with one frame of each camera, or all T of them.
      reset: True at the start of an episode.
      timeout_s: a later answer is not waited for.

    Raises:
      UnansweredError: no answer in time; asking again may help.
      UserError: the service refuses what was sent, or began to serve another
        policy: the robot keeps to the bounds and units of the first.
    """
    self.send(observation, reset, timeout_s)
    return self.receive(timeout_s)

  def send(
    self,
    observation: Observation,
    reset: bool = False,
    timeout_s: float = _ANSWER_S,
  ) -> None:
    """Sends what the policy reads, for `receive` to answer. Raises as `act`."""
    self._open(timeout_s)
    fields = {
      **{image_key(c): _newest(i) for c, i in observation.images.items()},
      INSTRUCTION_KEY: observation.instruction,
      "session_id": self._session,
      "reset": reset,
      "expects": self._expects,
    }
    reads_state = self._metadata.get("state_names") != []
    if observation.state is not None and reads_state:
      fields[STATE_KEY] = np.asarray(observation.state, np.float32)
    try:
      self._socket.send(numpy_msgpack.packb(fields))
    except (websockets.ConnectionClosed, OSError) as error:
      raise self._broken(error) from error

  def receive(self, timeout_s: float = _ANSWER_S) -> Reply:
    """Waits for the answer to what was sent. Raises as `act`."""
    try:
      data = self._socket.recv(timeout=timeout_s)
    except (websockets.ConnectionClosed, OSError) as error:
      raise self._broken(error) from error
    if isinstance(data, str):
      if data.startswith(UNAVAILABLE):
        raise UnansweredError(data.removeprefix(UNAVAILABLE))
      self.close()
      raise UserError(f"{self._url} refuses what was sent: {data}")
    answer = numpy_msgpack.unpackb(data)
    return Reply(answer["actions"], answer.get("plan", ""))

  def close(self) -> None:
    """Closes the connection; the next question opens another."""
    with contextlib.suppress(OSError, websockets.WebSocketException):
      self._opened.close()
    self._socket = None

  def _open(self, timeout_s: float) -> None:
    if self._socket:
      return
    header = {"Authorization": f"Api-Key {self._token}"} if self._token else {}
    try:
      self._socket = self._opened.enter_context(
        client.connect(
          self._url,
          additional_headers=header,
          compression=None,
          max_size=None,
          open_timeout=timeout_s,
          close_timeout=1,
        )
      )
      said = self._socket.recv(timeout=timeout_s)
    except websockets.InvalidURI as error:
      raise UserError(
        f"got the address {self._url!r}, expected one such as "
        "ws://127.0.0.1:8000"
      ) from error
    except websockets.InvalidStatus as error:
      if error.response.status_code in (401, 403):
        raise UserError(
          f"{self._url} refuses this client's token; pass that of the service"
        ) from error
      raise self._broken(error) from error
    except (OSError, websockets.WebSocketException) as error:
      raise self._broken(error) from error
    found = numpy_msgpack.unpackb(said)
    if self._metadata and found != self._metadata:
      self.close()
      changes = differing(self._metadata, found, "metadata")
      raise UserError(
        f"{self._url} serves another policy than before "
        f"({'; '.join(changes):.300}); begin again with this one"
      )
    self._metadata = found

  def _broken(self, error: Exception) -> UnansweredError:
    """A time-out is an OSError: a late answer must not look like the next."""
    self.close()
    return UnansweredError(f"{self._url}: {error or type(error).__name__}")


def _newest(frames: np.ndarray) -> np.ndarray:
  """uint8[H, W, 3] of one frame, or uint8[T, H, W, 3] of a whole history."""
  return frames[0] if len(frames) == 1 else frames


class ServedPolicy:
  """A service as a policy of several robots, for rollouts.

  Attributes:
    metadata: of the service.
  """

  def __init__(self, url: str, token: str = ""):
    """Connects.

    Raises:
      UserError: nobody there, not ready, or the token is refused.
    """
    self._url, self._token = url, token
    self._clients = [RobotClient(url, token)]
    with self._answered():
      self.metadata = self._clients[0].metadata()

  def act(
    self, observations: Sequence[Observation]
  ) -> tuple[list[str], np.ndarray]:
    """Chooses the next actions of B robots, which ask at the same time.

    Args:
      observations: with the whole history of each.

    Returns:
      B plans in words, and float32[B, H, D] in physical units.

    Raises:
      UserError: the service refuses what was sent, or does not answer.
    """
    while len(self._clients) < len(observations):
      self._clients.append(RobotClient(self._url, self._token))
    asking = self._clients[: len(observations)]
    with self._answered():
      for robot, observation in zip(asking, observations, strict=True):
        # Nothing is remembered of the last call's robot, which was another.
        robot.send(observation, reset=True)
      replies = [robot.receive() for robot in asking]
    return [r.plan for r in replies], np.stack([r.actions for r in replies])

  @contextlib.contextmanager
  def _answered(self) -> Iterator[None]:
    """Names a service without an answer, for which a rollout cannot hold."""
    try:
      yield
    except UnansweredError as error:
      raise UserError(
        f"got the service {self._url}, which does not answer ({error}); start "
        "launch/serve.py there, with a --queue_length for all robots"
      ) from error

"""openpi's websocket protocol, as `openpi-client` and RoboArena speak it.

The service sends its metadata first. Then each binary frame, the msgpack of an
observation, gets one: `actions` float32[H, D] and `server_timing`. A refusal is
a text frame, after which the connection is closed with 1011; a service that is
full says so and stays open. The connection is the robot's session, unless an
observation names one.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from rt2_jax.errors import UserError, unknown_name
from rt2_jax.serving import numpy_msgpack
from rt2_jax.serving.batcher import Session, UnavailableError
from rt2_jax.serving.description import (
  INSTRUCTION_KEY,
  STATE_KEY,
  UNAVAILABLE,
  image_key,
)
from rt2_jax.serving.reading import is_reset
from rt2_jax.serving.service import Service

_FAILED = 1011  # "internal error", which openpi's server sends
_RESET_DONE = "reset successful"  # RoboArena's server says it

_log = logging.getLogger(__name__)


class _Connection:
  """One client.

  Fields of an observation beside the pictures, the state and the prompt:
  `session_id`, whose session it belongs to; `endpoint`, "infer" or "reset";
  `reset`, True at an episode's start; `expects`, see `check_claims`.
  """

  def __init__(self, service: Service):
    self._service = service
    self._session: Session | None = None  # until an observation names none
    self._cameras = {
      image_key(camera): camera for camera in service.reader.camera_sizes
    }
    self._previous_s: float | None = None

  async def answer(self, data: Any) -> bytes | str:
    """Answers one frame.

    Raises:
      UserError: what it holds does not fit.
      UnavailableError: no request can be taken now.
    """
    start = time.monotonic()
    fields = self._fields(data)
    session = self._find_session(fields.pop("session_id", None))
    self._service.check_claims(fields.pop("expects", {}))
    reset = is_reset(fields.pop("reset", False))
    endpoint = fields.pop("endpoint", "infer")
    if not isinstance(endpoint, str) or endpoint not in ("infer", "reset"):
      raise unknown_name("endpoint", str(endpoint), ["infer", "reset"])
    if reset or endpoint == "reset":
      session.reset()
    if endpoint == "reset":
      return _RESET_DONE
    reply = await self._act(session, fields, start)
    self._previous_s = time.monotonic() - start
    return numpy_msgpack.packb(reply)

  def _find_session(self, name: Any) -> Session:
    if name is not None:
      return self._service.named_session(name)
    if self._session is None:
      self._session = self._service.open_session()
    return self._session

  def _fields(self, data: Any) -> dict[str, Any]:
    if not isinstance(data, bytes):
      raise UserError("got a text frame, expected a binary one with msgpack")
    fields = numpy_msgpack.unpackb(data)
    if not isinstance(fields, dict):
      raise UserError(
        f"got {type(fields).__name__} in a frame, expected an observation: "
        "values by their keys"
      )
    return fields

  async def _act(
    self, session: Session, fields: dict[str, Any], start: float
  ) -> dict[str, Any]:
    instruction = fields.pop(INSTRUCTION_KEY, None)
    state = fields.pop(STATE_KEY, None)
    for key in fields:
      if key not in self._cameras:
        raise unknown_name(
          "an image of an observation", str(key), self._cameras
        )
    pictures = {self._cameras[key]: value for key, value in fields.items()}
    answer = await self._service.act(
      session, "openpi", pictures, instruction, state
    )
    timing = {
      "infer_ms": 1000 * (time.monotonic() - start),
      "queue_ms": 1000 * answer.queue_s,
      "call_ms": 1000 * answer.call_s,
      "passes": answer.passes,
    }
    if self._previous_s is not None:
      timing["prev_total_ms"] = 1000 * self._previous_s
    reply = {"actions": answer.actions, "server_timing": timing}
    return reply | ({"plan": answer.plan} if answer.plan else {})


async def serve(websocket: WebSocket, service: Service) -> None:
  """Talks to one client until it goes, or sends what does not fit."""
  await websocket.accept()
  connection = _Connection(service)
  try:
    await websocket.send_bytes(numpy_msgpack.packb(service.metadata))
    while True:
      message = await websocket.receive()
      if message["type"] == "websocket.disconnect":
        return
      with service.answering():
        if not await _exchange(websocket, connection, message):
          return
  except WebSocketDisconnect:
    pass  # it went while it was sent to


async def _exchange(
  websocket: WebSocket, connection: _Connection, message: dict[str, Any]
) -> bool:
  """Answers a message; returns whether the connection goes on."""
  try:
    reply = await connection.answer(message.get("bytes"))
  except UnavailableError as error:
    await websocket.send_text(f"{UNAVAILABLE}{error}")
    return True
  except Exception as error:
    if not isinstance(error, UserError):
      _log.exception("a request failed")
      error = "the service failed; its log says why"
    await websocket.send_text(str(error))
    await websocket.close(_FAILED)
    return False
  if isinstance(reply, str):
    await websocket.send_text(reply)
  else:
    await websocket.send_bytes(reply)
  return True

"""`POST /act` in JSON, and what operators ask a service.

    {"images": {"primary": "<base64 of a JPEG, PNG or WebP file>"},
     "instruction": "put carrot on plate",
     "state": [0.3, 0.0, …], "session": "arm-2", "reset": false,
     "expects": {"action_units": ["yes/no", "m", …]}}

gets `{"actions": [[…], …], "plan": "…", "timing": {…}}`, or an error with its
status. An image may also be a list of lists of pixels, and `"image"` stands for
the only camera. Without a session every request begins an episode.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from rt2_jax.errors import UserError, unknown_name
from rt2_jax.serving import metrics
from rt2_jax.serving.batcher import UnavailableError
from rt2_jax.serving.reading import is_reset
from rt2_jax.serving.service import Service

_FIELDS = (
  *("image", "images", "instruction", "state"),
  *("session", "reset", "expects"),
)
_RETRY = {"Retry-After": "1"}

_log = logging.getLogger(__name__)


class TooLargeError(UserError):
  """A request with more bytes than an honest one has."""


async def act(request: Request) -> Response:
  """Answers an observation."""
  service: Service = request.app.state.service
  with service.answering():
    try:
      body = await _body(request, service.reader.max_bytes)
      fields = _fields(body)
      pictures = _pictures(fields, list(service.reader.camera_sizes))
      return JSONResponse(await _act(service, fields, pictures))
    except UnavailableError as error:
      return JSONResponse({"error": str(error)}, 503, headers=_RETRY)
    except UserError as error:
      status = 413 if isinstance(error, TooLargeError) else 400
      return JSONResponse({"error": str(error)}, status)
    except ClientDisconnect:
      return Response(status_code=400)  # nobody reads it
    except Exception:
      _log.exception("a request failed")
      error = "the service failed; its log says why"
      return JSONResponse({"error": error}, 500)


async def _body(request: Request, max_bytes: int) -> bytes:
  """Reads no more than `max_bytes`."""
  kind = request.headers.get("content-type", "").partition(";")[0].strip()
  if kind != "application/json":
    raise UserError(
      f"got content of type {kind!r:.80}, expected 'application/json'"
    )
  body = bytearray()
  async for part in request.stream():
    body += part
    if len(body) > max_bytes:
      raise TooLargeError(
        f"got a request of more than {max_bytes} bytes, expected images of the "
        "stated sizes and little beside them"
      )
  return bytes(body)


def _fields(body: bytes) -> dict[str, Any]:
  try:
    fields = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise UserError(f"got a body that is no JSON: {error!s:.80}") from error
  if not isinstance(fields, dict):
    raise UserError(f"got {type(fields).__name__}, expected a JSON object")
  for name in fields:
    if name not in _FIELDS:
      raise unknown_name("a field of a request", name, _FIELDS)
  return fields


async def _act(
  service: Service, fields: Mapping[str, Any], pictures: Mapping[str, Any]
) -> dict[str, Any]:
  service.check_claims(fields.get("expects", {}))
  if fields.get("session") is None:
    session = service.open_session()
  else:
    session = service.named_session(fields["session"])
  if is_reset(fields.get("reset", False)):
    session.reset()
  answer = await service.act(
    session,
    "http",
    pictures,
    fields.get("instruction"),
    fields.get("state"),
  )
  return {
    "actions": answer.actions.tolist(),
    "plan": answer.plan,
    "timing": {
      "queue_ms": 1000 * answer.queue_s,
      "call_ms": 1000 * answer.call_s,
      "passes": answer.passes,
    },
  }


def _pictures(fields: Mapping[str, Any], cameras: list[str]) -> dict[str, Any]:
  pictures = fields.get("images", {})
  if "image" in fields:
    if pictures or len(cameras) > 1:
      raise UserError(
        f"got 'image' for a policy of the cameras {cameras}, expected 'images' "
        "with each camera's own"
      )
    pictures = {cameras[0]: fields["image"]}
  if not isinstance(pictures, dict):
    raise UserError(
      f"got images of type {type(pictures).__name__}, expected an image by the "
      "name of its camera"
    )
  return {camera: _picture(camera, each) for camera, each in pictures.items()}


def _picture(camera: str, value: Any) -> Any:
  """Bytes of a file, or pixels."""
  if isinstance(value, str):
    try:
      return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
      raise UserError(
        f"got a text from camera {camera!r} that is no base64 ({error}), "
        "expected that of an image file"
      ) from error
  try:
    pixels = np.asarray(value)
  except ValueError as error:
    raise UserError(
      f"got lists of different lengths from camera {camera!r}, expected pixels"
    ) from error
  is_whole = pixels.dtype.kind == "i" and pixels.size
  if not is_whole or pixels.min() < 0 or pixels.max() > 255:
    raise UserError(
      f"got pixels of camera {camera!r} that are not whole numbers of 0 to 255"
    )
  return pixels.astype(np.uint8)


async def healthz(request: Request) -> Response:
  """Says that the process answers."""
  return PlainTextResponse("OK\n")


async def readyz(request: Request) -> Response:
  """Says whether requests are taken."""
  if request.app.state.service.ready:
    return PlainTextResponse("ready\n")
  return PlainTextResponse("not ready\n", 503, headers=_RETRY)


async def metadata(request: Request) -> Response:
  """Says what the policy is."""
  return JSONResponse(request.app.state.service.metadata)


async def numbers(request: Request) -> Response:
  """Answers Prometheus."""
  text = request.app.state.service.metrics.text()
  return Response(text, media_type=metrics.CONTENT_TYPE)

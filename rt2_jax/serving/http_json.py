"""`POST /act` in JSON, and what operators ask a service.

    {"images": {"primary": "<base64 of a JPEG, PNG or WebP file>"},
     "instruction": "put carrot on plate",
     "state": [0.3, 0.0, …], "session": "arm-2", "reset": false,
     "expects": {"action_units": ["yes/no", "m", …]}}

gets `{"actions": [[…], …], "plan": "…", "timing": {…}}`, or an error with its
status. An image may also be a list of lists of pixels, and `"image"` stands for
the only camera. Without a session every request begins an episode.

performance: a parser lets no other thread run, so that it would stop the event
loop from any thread. The loop itself only finds the ends of a body's fields. A
thread then reads images: those in lists row by row, and others run in between.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from rt2_jax.errors import UserError, unknown_name
from rt2_jax.serving import metrics
from rt2_jax.serving.batcher import UnavailableError
from rt2_jax.serving.reading import OTHER_BYTES, is_reset
from rt2_jax.serving.service import Service

_IMAGES = ("image", "images")
_FIELDS = (*_IMAGES, "instruction", "state", "session", "reset", "expects")
_PART_BYTES = 1 << 16  # of a list; longer ones are read in parts
_LEVELS = 2  # of lists in such parts: frames, and their rows
_RETRY = {"Retry-After": "1"}

_log = logging.getLogger(__name__)


class TooLargeError(UserError):
  """A request with more bytes than an honest one has."""


async def act(request: Request) -> Response:
  """Answers an observation."""
  service: Service = request.app.state.service
  with service.answering():
    try:
      fields = _fields(await _body(request, service.reader.max_bytes))
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
  if kind.lower() != "application/json":
    raise UserError(
      f"got content of type {kind!r:.80}, expected 'application/json'"
    )
  body = bytearray()
  async for part in request.stream():
    body += part
    if len(body) > max_bytes:
      raise TooLargeError(
        f"got a request of more than {max_bytes} bytes, expected images of the "
        "stated sizes and little beside them: send the base64 of JPEG files"
      )
  return bytes(body)


def _fields(body: bytes) -> dict[str, Any]:
  """Reads all fields but images, which stay as they came."""
  with _reading("a body", "a JSON object"):
    fields = msgspec.json.decode(body, type=dict[str, Raw])
  for name, raw in fields.items():
    if name not in _FIELDS:
      raise unknown_name("a field of a request", name, _FIELDS)
    if name in _IMAGES:
      continue
    if len(raw) > OTHER_BYTES:
      raise UserError(
        f"got {len(raw)} bytes of {name!r}, expected at most {OTHER_BYTES}"
      )
    with _reading(repr(name), "JSON"):
      fields[name] = msgspec.json.decode(raw)
  return fields


@contextlib.contextmanager
def _reading(what: str, expected: str) -> Iterator[None]:
  """Raises UserError where JSON does not fit."""
  try:
    yield
  except (msgspec.MsgspecError, ValueError, RecursionError) as error:
    raise UserError(
      f"got {what} that cannot be read ({error!s:.80}), expected {expected}"
    ) from error


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


def _pictures(
  fields: Mapping[str, Any], cameras: list[str]
) -> dict[str, Callable[[], bytes | np.ndarray]]:
  """Returns what reads each camera's image."""
  pictures: dict[str, Raw] = {}
  if "images" in fields:
    with _reading("'images'", "an image by the name of its camera"):
      pictures = msgspec.json.decode(fields["images"], type=dict[str, Raw])
  if "image" in fields:
    if pictures or len(cameras) > 1:
      raise UserError(
        f"got 'image' for a policy of the cameras {cameras}, expected 'images' "
        "with each camera's own"
      )
    pictures = {cameras[0]: fields["image"]}
  return {
    camera: functools.partial(_picture, camera, raw)
    for camera, raw in pictures.items()
  }


def _picture(camera: str, raw: Raw) -> bytes | np.ndarray:
  """Reads a file, or pixels."""
  expected = "the base64 of an image file, or rows of pixels"
  with _reading(f"an image of camera {camera!r}", expected):
    if memoryview(raw)[0] == ord('"'):
      return msgspec.json.decode(raw, type=bytes)
    pixels = _array(raw)
  is_whole = pixels.dtype.kind == "i" and pixels.size
  if not is_whole or pixels.min() < 0 or pixels.max() > 255:
    raise UserError(
      f"got pixels of camera {camera!r} that are not whole numbers of 0 to 255"
    )
  return pixels.astype(np.uint8)


def _array(raw: Raw, levels: int = _LEVELS) -> np.ndarray:
  """Reads lists of lists; long ones in parts, see the top of this file."""
  if levels and len(raw) > _PART_BYTES:
    parts = msgspec.json.decode(raw, type=list[Raw])
    return np.stack([_array(part, levels - 1) for part in parts])
  return np.asarray(msgspec.json.decode(raw))


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

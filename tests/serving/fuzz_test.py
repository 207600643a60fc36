"""Fuzzes every protocol: a clear error or a valid answer, each time.

Frames are honest ones with bytes, lengths, types and values changed. They go
into the protocols' own handlers, without a network between. `make fuzz` sends
more of them.
"""

import asyncio
import base64
import functools
import io
import json
import os

import msgpack
import numpy as np
import pytest
from PIL import Image
from vla_eval.model_servers.serve import _handle_connection
from vla_eval.protocol.image_codec import encode_image
from vla_eval.protocol.messages import Message, MessageType, pack_message

from rt2_jax.serving import numpy_msgpack, openpi, server
from rt2_jax.serving.service import Service
from rt2_jax.serving.vla_eval import BenchmarkServer
from tests.serving import served

FRAMES = int(os.environ.get("FUZZ_FRAMES", "1000"))
ODD = (
  *(
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    float("nan"),
    "",
    "x" * 3000,
    b"",
    b"\xff",
  ),
  *([], {}, [[]], [None], {"a": 1}, {1: 2}, [[1, 2], [3]], "\ud7ff"),
)


class Fuzzer:
  """Changes messages at random, always in the same way for a seed."""

  def __init__(self, seed: int):
    self.rng = np.random.default_rng(seed)

  def pick(self, choices):
    return choices[int(self.rng.integers(len(choices)))]

  def value(self, value):
    """A message with one value somewhere in it replaced, removed or added."""
    if isinstance(value, dict) and value and self.rng.random() < 0.8:
      key = self.pick(list(value))
      changed = dict(value)
      if self.rng.random() < 0.15:
        del changed[key]
      elif self.rng.random() < 0.15:
        changed[self.pick(("prompt", "x", "reset", "session_id"))] = value[key]
      else:
        changed[key] = self.value(value[key])
      return changed
    return self.pick(ODD)

  def bytes(self, data: bytes) -> bytes:
    """A frame with some bytes flipped, cut out, repeated or appended."""
    array = bytearray(data)
    for _ in range(int(self.rng.integers(1, 4))):
      at = int(self.rng.integers(min(len(array), 300) + 1))
      kind = self.rng.integers(4)
      if kind == 0 and at < len(array):
        array[at] = int(self.rng.integers(256))
      elif kind == 1:
        del array[at : at + int(self.rng.integers(1, 40))]
      elif kind == 2:
        array[at:at] = array[: int(self.rng.integers(1, 40))]
      else:
        array[at:at] = self.rng.bytes(int(self.rng.integers(1, 12)))
    return bytes(array)

  def frame(self, message, pack) -> bytes:
    if self.rng.random() < 0.6:
      message = self.value(message)
      if self.rng.random() < 0.3:
        message = self.value(message)
    try:
      data = pack(message)
    except (TypeError, ValueError, OverflowError):  # no message could say it
      data = pack({})
    return self.bytes(data) if self.rng.random() < 0.5 else data


def fuzz(policy, answer_all):
  """Runs `answer_all(service, fuzzer)`, and then asks honestly."""

  async def main():
    service = served.make_service(policy)
    service.start()
    await answer_all(service, Fuzzer(0))
    session = service.open_session()
    pictures = {"primary": served.image(1)}
    answer = await service.act(session, "test", pictures, "pick apple", None)
    expected = served.marked(policy, served.image(1))
    np.testing.assert_array_equal(answer.actions, expected)
    await service.close()

  asyncio.run(main())


@pytest.fixture(scope="module")
def quick(tokenizer):
  return served.MarkedPolicy(tokenizer)


def test_openpi(quick):
  outcomes = {"answer": 0, "refusal": 0}

  async def answer_all(service, fuzzer):
    for number in range(FRAMES):
      honest = {
        "observation/image": served.image(number % 5),
        "prompt": "pick apple",
        "endpoint": "infer",
        "expects": {"action_dim": 8},
      }
      frame = fuzzer.frame(honest, numpy_msgpack.packb)
      replies = await converse(service, frame)
      *_, (kind, reply) = replies
      if kind == "bytes":
        actions = numpy_msgpack.unpackb(reply)["actions"]
        assert actions.shape == (served.HORIZON, 8)
        outcomes["answer"] += 1
      else:
        assert kind == "text" and reply
        assert "its log says why" not in reply
        outcomes["refusal"] += 1

  fuzz(quick, answer_all)
  assert min(outcomes.values()) > FRAMES // 20, outcomes


async def converse(service: Service, frame: bytes) -> list[tuple[str, object]]:
  """What one client of openpi is sent after the metadata."""
  received = [
    {"type": "websocket.connect"},
    {"type": "websocket.receive", "bytes": frame},
    {"type": "websocket.disconnect", "code": 1000},
  ]
  sent = []

  async def receive():
    return received.pop(0)

  async def send(message):
    for kind in ("bytes", "text"):
      if message.get(kind) is not None:
        sent.append((kind, message[kind]))

  scope = {"type": "websocket", "headers": [], "path": "/"}
  await openpi.serve(openpi.WebSocket(scope, receive, send), service)
  return sent[1:]


def test_http(quick):
  outcomes = {200: 0, 400: 0}

  async def answer_all(service, fuzzer):
    app = server.make_app(service)
    for number in range(FRAMES):
      seed = number % 5
      honest = {
        "image": png(seed) if number % 8 else served.image(seed).tolist(),
        "instruction": "pick apple",
        "session": "a",
        "reset": False,
        "expects": {"action_dim": 8},
      }
      body = fuzzer.frame(honest, to_json)
      status, reply = await post(app, body)
      assert status in outcomes, (status, reply)
      outcomes[status] += 1
      if status == 200:
        assert np.shape(reply["actions"]) == (served.HORIZON, 8)
      else:
        assert reply["error"]

  fuzz(quick, answer_all)
  assert min(outcomes.values()) > FRAMES // 20, outcomes


@functools.cache
def png(seed: int) -> str:
  data = io.BytesIO()
  Image.fromarray(served.image(seed)).save(data, "PNG")
  return base64.b64encode(data.getvalue()).decode()


def to_json(message) -> bytes:
  return json.dumps(message).encode()


async def post(app, body: bytes) -> tuple[int, dict]:
  """Status and JSON of the answer to a body, in two parts."""
  half = len(body) // 2
  received = [
    {"type": "http.request", "body": body[:half], "more_body": True},
    {"type": "http.request", "body": body[half:], "more_body": False},
  ]
  sent = []

  async def receive():
    return received.pop(0)

  async def send(message):
    sent.append(message)

  scope = {
    "type": "http",
    "method": "POST",
    "path": "/act",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
  }
  await app(scope, receive, send)
  data = b"".join(message.get("body", b"") for message in sent)
  return sent[0]["status"], json.loads(data)


@functools.cache
def encoded(seed: int, as_png: bool):
  """An image as vla-eval's messages hold it."""
  return encode_image(served.image(seed), "png" if as_png else "raw")


class Socket:
  """What vla-eval's handler reads from and writes to."""

  def __init__(self, frames):
    self.frames, self.sent = frames, []

  async def __aiter__(self):
    for frame in self.frames:
      yield frame

  async def send(self, data):
    self.sent.append(msgpack.unpackb(data, strict_map_key=False))


def test_vla_eval(quick, caplog):
  """A frame that is none of its messages ends that client's connection."""
  outcomes = {"action": 0, "error": 0, "closed": 0}
  begin = pack_message(Message(MessageType.EPISODE_START, {"task": {}}, 1))

  def pack(payload):
    return pack_message(Message(MessageType.OBSERVATION, payload, 2))

  async def answer_all(service, fuzzer):
    one = BenchmarkServer(service, quick.action_space, "libero")
    for number in range(FRAMES):
      honest = {
        "images": {"agentview": encoded(number % 5, number % 8 == 0)},
        "task_description": "pick apple",
      }
      socket = Socket([begin, fuzzer.frame(honest, pack)])
      await _handle_connection(socket, one)
      kind = socket.sent[-1]["type"] if socket.sent else "closed"
      if kind != "hello":
        outcomes[kind] += 1
      if kind == "error":
        error = socket.sent[-1]["payload"]["error"]
        assert "UserError" in error, error

  caplog.set_level("CRITICAL", "vla_eval.model_servers.serve")
  fuzz(quick, answer_all)
  assert min(outcomes.values()) > FRAMES // 50, outcomes

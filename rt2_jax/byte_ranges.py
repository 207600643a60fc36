"""Bytes of many files: a local disk, or an object store behind `fsspec`.

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

from rt2_jax import storage
from rt2_jax.errors import UserError

_IN_FLIGHT = 64  # requests to an object store at the same time
_BEYOND_END = 416  # HTTP's range not satisfiable
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

  def sizes(self, paths: Sequence[str]) -> list[int]:
    """Bytes of each file."""

  def version(self, path: str) -> str:
    """Changes when a file does: its size and time, or its generation."""

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
  return ObjectStorage(path) if storage.is_url(path) else LocalStorage()


class LocalStorage:
  """Files on this machine, one descriptor each, read from any thread."""

  def __init__(self):
    self._descriptors: dict[str, int] = {}
    _allow_open_files(_OPEN_FILES)

  def names(self, folder: str) -> list[str]:
    try:
      return sorted(map(str, pathlib.Path(folder).iterdir()))
    except (FileNotFoundError, NotADirectoryError):
      return []

  def sizes(self, paths: Sequence[str]) -> list[int]:
    return [os.stat(path).st_size for path in paths]

  def version(self, path: str) -> str:
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns}"

  def whole(self, path: str) -> memoryview:
    if not os.stat(path).st_size:
      return memoryview(b"")  # nothing to map
    with open(path, "rb") as file:
      return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

  def read(self, requests: Sequence[Request]) -> list[bytes]:
    return [self._read(request) for request in requests]

  def _read(self, request: Request) -> bytes:
    try:
      if request.path not in self._descriptors:
        self._descriptors[request.path] = os.open(request.path, os.O_RDONLY)
      descriptor = self._descriptors[request.path]
      data = os.pread(descriptor, request.length, request.offset)
    except OSError as error:
      raise UserError(
        f"{request.path}, byte {request.offset}: got {error.strerror}, "
        "expected a shard that is there and may be read; bring it back, or get "
        "the right to read it, and start again"
      ) from error
    return _checked(data, request)


class ObjectStorage:
  """Files behind an `fsspec` file system, e.g. `gs`, `s3` or `memory`.

  Every method raises UserError where the store refuses.
  """

  def __init__(self, path: str):
    """Opens the store that a URL names."""
    self._files = storage.file_system(path)
    self._threads = concurrent.futures.ThreadPoolExecutor(_IN_FLIGHT)

  def names(self, folder: str) -> list[str]:
    place = storage.Url(folder)
    try:
      return sorted(map(str, place.iterdir()))
    except FileNotFoundError:
      return []

  def sizes(self, paths: Sequence[str]) -> list[int]:
    return list(self._threads.map(self._size, paths))

  def version(self, path: str) -> str:
    with storage.named_in_errors(path, verb="read"):
      return self._files.ukey(path)

  def whole(self, path: str) -> memoryview:
    return memoryview(storage.Url(path).read_bytes())

  def read(self, requests: Sequence[Request]) -> list[bytes]:
    return list(self._threads.map(self._read, requests))

  def _size(self, path: str) -> int:
    with storage.named_in_errors(path, verb="read"):
      return self._files.size(path)

  def _read(self, request: Request) -> bytes:
    start, end = request.offset, request.offset + request.length
    with storage.named_in_errors(request.path, verb="read"):
      try:
        data = self._files.cat_file(request.path, start=start, end=end)
      except Exception as error:
        if getattr(error, "code", None) != _BEYOND_END:
          raise
        data = b""
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

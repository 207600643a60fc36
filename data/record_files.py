"""TFRecord files that a stopped program goes on with.

A record is its length, the masked checksum of the length, the data, and the
masked checksum of the data; TensorFlow's own writer cannot append to a file.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import google_crc32c

from rt2_jax.input_pipeline.records import masked_checksum

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")


class RecordFile:
  """A file of records, written from a known place on."""

  def __init__(self, path: Path, size: int = 0):
    """Opens a file; what lies behind its first `size` bytes is removed."""
    self._file = path.open("r+b" if size else "wb")
    self._file.truncate(size)
    self._file.seek(size)

  def write(self, data: bytes):
    """Appends a record."""
    length = _LENGTH.pack(len(data))
    self._file.write(length + _checksum(length) + data + _checksum(data))

  def flush(self) -> int:
    """Brings everything to the disk; returns the size of the file."""
    self._file.flush()
    os.fsync(self._file.fileno())
    return self._file.tell()

  def close(self):
    self._file.close()


def _checksum(data: bytes) -> bytes:
  return _CHECKSUM.pack(masked_checksum(google_crc32c.value(data)))

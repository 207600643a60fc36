"""Sizes of encoded images, read from their headers: nothing is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from rt2_jax.images import MAX_SIDE, MIN_SIDE

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE = struct.Struct(">II")  # width, height; at byte 16
_JPEG = b"\xff\xd8"
_SEGMENT = struct.Struct(">BBH")  # 0xff, marker, length after the marker
_FRAME_SIZE = struct.Struct(">HH")  # height, width; after one byte of precision
# SOF0..SOF15 state the size; three of their numbers mean other segments.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length


def largest_size(images: Iterable[memoryview]) -> tuple[int, int]:
  """Returns (height, width) that hold all of the images, in pixels.

  Images of one encoder begin with the same bytes, up to their size, so that
  most of them cost one comparison. An image without a likely size counts for
  nothing; it is named when it is decoded.
  """
  height = width = 0
  start: bytes | None = None
  for image in images:
    if start and image[: len(start)] == start:
      continue
    found = _find_size(bytes(image[:65536])) or _find_size(bytes(image))
    if not found:
      continue
    own_height, own_width, end = found
    start = bytes(image[:end])
    if min(own_height, own_width) < MIN_SIDE:
      continue
    if max(own_height, own_width) > MAX_SIDE:
      continue
    height, width = max(height, own_height), max(width, own_width)
  return height, width


def as_column(sizes: list[tuple[int, int]]) -> np.ndarray:
  """Sizes as a column of an index, uint16[n, 2]."""
  return np.asarray(sizes, np.uint16).reshape(-1, 2)


def _find_size(data: bytes) -> tuple[int, int, int] | None:
  """Finds (height, width, end of their bytes) of a JPEG or PNG."""
  try:
    if data.startswith(_PNG):
      width, height = _PNG_SIZE.unpack_from(data, 16)
      return height, width, 16 + _PNG_SIZE.size
    if data.startswith(_JPEG):
      return _find_jpeg_size(data)
  except struct.error:  # the header is cut off
    pass
  return None


def _find_jpeg_size(data: bytes) -> tuple[int, int, int] | None:
  """Walks the segments of a JPEG up to its frame header."""
  position = len(_JPEG)
  while True:
    mark, marker, length = _SEGMENT.unpack_from(data, position)
    if mark != 0xFF:
      return None
    if marker == 0xFF:  # padding between segments
      position += 1
    elif marker in _STANDALONE:
      position += 2
    elif marker in _FRAME_MARKERS:
      start = position + _SEGMENT.size + 1
      height, width = _FRAME_SIZE.unpack_from(data, start)
      return height, width, start + _FRAME_SIZE.size
    else:
      position += 2 + length

"""TFRecord shards as TFDS writes them, read without copying or decoding.

A record is an uncompressed `tf.train.Example`, so the bytes of every image lie
contiguous in the shard: once their offsets are known, any image is one
`pread`. This file compares records with their checksums, and parses only what
it is asked for.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np

from rt2_jax.byte_ranges import Storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.unusable import Unusable

_HEADER = struct.Struct("<QI")  # length, masked crc32c of the length
_CHECKSUM = struct.Struct("<I")  # masked crc32c of the data
_FOOTER_SIZE = _CHECKSUM.size
_GZIP = b"\x1f\x8b"

# Wire types and field numbers of tf.train.Example's protocol buffers.
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3

Span = tuple[int, int]


def read_records(
  storage: Storage,
  path: str,
  damaged: list[Unusable] | None = None,
  count: Callable[[Record], int] = lambda record: 1,
) -> Iterator[Record]:
  """Yields the records of a shard, unparsed, their checksums compared.

  Args:
    storage: where the shard lies.
    path: the shard.
    damaged: gets what is left out. Behind a damaged length no record can be
      found: one entry stands for all the rest of the shard. None makes damage
      an error.
    count: examples in a record; it may be given a damaged one.

  Raises:
    UserError: damage that is not collected, with file and offset.
  """

  def report(problem: object, **lost: int):
    line = f"{path}: got {problem}; copy the shard again"
    if damaged is None:
      raise UserError(line)
    damaged.append(Unusable(line, number, **lost))

  data = storage.whole(path)
  offset = number = 0
  if not data:
    report("an empty TFRecord file", records=0, examples=0)
  if data[:2] == _GZIP:
    raise UserError(
      f"{path}: got a TFRecord file compressed with gzip, expected a plain "
      "one, in which single images can be read; unpack it with `gzip -d`"
    )
  while offset < len(data):
    try:
      start, end = _find_data(data, offset)
    except UserError as problem:
      return report(problem, records=0, examples=0)
    content = bytes(data[start:end])
    checksum = google_crc32c.value(content)
    record = Record(path, start, content, number, checksum)
    if _CHECKSUM.unpack_from(data, end) == (masked_checksum(checksum),):
      yield record
    else:
      problem = f"a record at byte {start} whose checksum is wrong"
      report(problem, examples=count_or_one(record, count))
    offset = end + _FOOTER_SIZE
    number += 1


def count_or_one(record: Record, count: Callable[[Record], int]) -> int:
  """Examples in a damaged record: as it says, or one if nothing can be read."""
  try:
    return max(1, count(record))
  except UserError:
    return 1


def _find_data(data: memoryview, offset: int) -> Span:
  """Finds begin and end of the data of the record at `offset`.

  Raises:
    UserError: what is wrong there; from there on nothing can be found.
  """
  start = end = offset + _HEADER.size
  if start <= len(data):
    length, checksum = _HEADER.unpack_from(data, offset)
    stated = google_crc32c.value(bytes(data[offset:][:8]))
    if checksum != masked_checksum(stated):
      raise UserError(
        f"a corrupt record length at byte {offset}, from where on all is lost, "
        "expected a TFRecord file"
      )
    end = start + length
  lacking = end + _FOOTER_SIZE - len(data)
  if lacking > 0:
    raise UserError(
      f"a TFRecord file that ends inside the record at byte {offset}, expected "
      f"at least {lacking} bytes more"
    )
  return start, end


def masked_checksum(crc: int) -> int:
  """Masks a checksum as TFRecords do (TensorFlow, core/lib/hash/crc32c.h)."""
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Record:
  """One `tf.train.Example`; it is parsed when a feature is asked for."""

  def __init__(
    self,
    path: str,
    offset: int,
    data: bytes | memoryview,
    number: int = 0,
    checksum: int = 0,
  ):
    """
    Args:
      path: the file.
      offset: where `data` begins in it.
      data: the record's bytes.
      number: of the record in its file.
      checksum: crc32c of `data`.
    """
    self.path, self.offset, self.length = path, offset, len(data)
    self.number, self.checksum = number, checksum
    self._data = memoryview(data)

  @property
  def where(self) -> str:
    """The record's place, for error messages."""
    return f"{self.path}, byte {self.offset}"

  @property
  def names(self) -> list[str]:
    return sorted(self._features)

  def byte_spans(self, name: str) -> list[Span]:
    """Finds (offset in the file, length) of each byte string of a feature."""
    values = self._values(name, _BYTES_LIST)
    return [(self.offset + s, e - s) for _, s, e in values]

  def view(self, span: Span) -> memoryview:
    """Views the bytes of a span without a copy."""
    start = span[0] - self.offset
    return self._data[start : start + span[1]]

  def byte_strings(self, name: str) -> list[bytes]:
    return [bytes(self.view(span)) for span in self.byte_spans(name)]

  def texts(self, name: str) -> list[str]:
    try:
      return [text.decode() for text in self.byte_strings(name)]
    except UnicodeDecodeError as error:
      raise UserError(
        f"{self.where}: got a text in {name!r} that is not UTF-8 ({error}); "
        "repair or remove this record"
      ) from error

  def numbers(self, name: str) -> np.ndarray:
    """Reads float32[n] or int64[n], the kind that the feature holds."""
    start, end = self._span(name)
    kinds = [kind for kind, _, _, _ in self._fields(start, end)]
    try:
      if _INT64_LIST in kinds:
        return self._integers(name)
      values = self._values(name, _FLOAT_LIST)
      # Packed floats are one block; unpacked ones come as one field each.
      block = b"".join(self._data[s:e] for _, s, e in values)
      return np.frombuffer(block, "<f4")
    except (IndexError, OverflowError, ValueError) as error:
      raise UserError(
        f"{self.where}: got numbers in {name!r} that cannot be read ({error}); "
        "repair or remove this record"
      ) from error

  def _integers(self, name: str) -> np.ndarray:
    out = []
    for _, position, end in self._values(name, _INT64_LIST):
      while position < end:
        value, position = self._varint(position)
        out.append(value)
    # Varints are unsigned; negative numbers come in two's complement.
    return np.asarray(out, np.uint64).astype(np.int64)

  def _values(self, name: str, kind: int) -> list[tuple[int, int, int]]:
    """Finds (wire type, start, end) of each value in a feature's list."""
    start, end = self._span(name)
    return [
      (wire, s2, e2)
      for field, _, s, e in self._fields(start, end)
      if field == kind
      for field2, wire, s2, e2 in self._fields(s, e)
      if field2 == 1
    ]

  def _span(self, name: str) -> Span:
    if name not in self._features:
      raise UserError(
        f"{self.where}: got a record without the feature {name!r}; it has "
        f"{', '.join(self.names)}; check the dataset's name and version"
      )
    return self._features[name]

  @functools.cached_property
  def _features(self) -> dict[str, Span]:
    features = {}
    for field, _, start, end in self._fields(0, len(self._data)):
      if field != 1:
        continue
      for _, _, entry, entry_end in self._fields(start, end):
        key, value = b"", (0, 0)
        for part, _, s, e in self._fields(entry, entry_end):
          if part == 1:
            key = bytes(self._data[s:e])
          else:
            value = (s, e)
        features[key.decode(errors="replace")] = value
    return features

  def _fields(self, position: int, end: int) -> list[tuple[int, ...]]:
    """Parses (field number, wire type, start, end) of a message's fields."""
    fields = []
    data = self._data
    while position < end:
      try:
        # Nearly all tags and lengths are one byte: no call for those.
        tag, start = data[position], position + 1
        if tag >= 128:
          tag, start = self._varint(position)
        number, wire = tag >> 3, tag & 7
        position = start
        if wire == _DELIMITED:
          length, start = data[position], position + 1
          if length >= 128:
            length, start = self._varint(position)
          position = start + length
        elif wire == _VARINT:
          _, position = self._varint(position)
        elif wire in (_FIXED32, _FIXED64):
          position += 4 if wire == _FIXED32 else 8
        else:
          position = end + 1
      except IndexError:
        position = end + 1
      if position > end:
        raise UserError(
          f"{self.where}: got a record that is not a tf.train.Example, "
          "expected TFDS's TFRecord format"
        )
      fields.append((number, wire, start, position))
    return fields

  def _varint(self, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
      byte = self._data[position]
      position += 1
      value |= (byte & 127) << shift
      if byte < 128:
        return value, position
      shift += 7

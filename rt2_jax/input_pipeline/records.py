"""TFRecord shards as TFDS writes them, read without copying or decoding.

A record is an uncompressed `tf.train.Example`, so the bytes of every image lie
contiguous in the shard: once their offsets are known, any image is one
`pread`. This file walks records and their length fields only.
"""

from __future__ import annotations

import json
import mmap
import pathlib
import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

_HEADER = struct.Struct("<QI")  # length, masked crc32c of the length
_FOOTER_SIZE = 4  # masked crc32c of the data

# Wire types and field numbers of tf.train.Example's protocol buffers.
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3

Span = tuple[int, int]


def find_shards(folder: str | pathlib.Path, split: str) -> list[pathlib.Path]:
  """The TFRecord files of one split of a TFDS dataset version, in order.

  Args:
    folder: the version folder, e.g. `…/fractal20220817_data/0.1.0`.
    split: the name of a split, e.g. "train".

  Raises:
    ValueError: no dataset there, no such split, or a shard is missing.
  """
  folder = pathlib.Path(folder)
  info_path = folder / "dataset_info.json"
  if not info_path.is_file():
    raise ValueError(
      f"got dataset path {str(folder)!r}, which holds no dataset_info.json; "
      "expected a TFDS version folder such as …/bridge_dataset/1.0.0"
    )
  splits = json.loads(info_path.read_text())["splits"]
  lengths = {s["name"]: len(s["shardLengths"]) for s in splits}
  if split not in lengths:
    raise ValueError(
      f"got split {split!r}, expected one of {', '.join(lengths)} ({folder})"
    )
  count = lengths[split]
  numbers = [f"{i:05d}-of-{count:05d}" for i in range(count)]
  found = {
    number: path
    for path in folder.glob(f"*-{split}.tfrecord-*")
    for number in numbers
    if path.name.endswith(number)
  }
  missing = [number for number in numbers if number not in found]
  if missing:
    raise ValueError(
      f"got {len(found)} of {count} TFRecord shards of split {split!r} in "
      f"{folder}; missing: {', '.join(missing[:5])}; copy them again"
    )
  return [found[number] for number in numbers]


def read_records(path: pathlib.Path) -> Iterator[Record]:
  """Yields the records of a shard, unparsed.

  Raises:
    ValueError: the file ends inside a record, or a length field is corrupt;
      the message names file and offset.
  """
  size = path.stat().st_size
  if not size:
    raise ValueError(f"{path}: got an empty TFRecord file; copy it again")
  with path.open("rb") as file:
    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
  offset = 0
  while offset < size:
    start = offset + _HEADER.size
    if start > size:
      raise _truncated(path, offset, start - size)
    length, checksum = _HEADER.unpack_from(data, offset)
    if checksum != _masked_crc(bytes(data[offset : offset + 8])):
      raise ValueError(
        f"{path}: got a corrupt record length at byte {offset}, expected a "
        "TFRecord file; copy it again"
      )
    end = start + length + _FOOTER_SIZE
    if end > size:
      raise _truncated(path, offset, end - size)
    yield Record(path, start, data[start : start + length])
    offset = end


def _truncated(path: pathlib.Path, offset: int, lacking: int) -> ValueError:
  return ValueError(
    f"{path}: got a TFRecord file that ends inside the record at byte "
    f"{offset}, expected {lacking} bytes more; it is truncated, copy it again"
  )


def _masked_crc(data: bytes) -> int:
  """The checksum of TFRecord headers (TensorFlow, core/lib/hash/crc32c.h)."""
  crc = google_crc32c.value(data)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Record:
  """One `tf.train.Example`; features are parsed when asked for by name."""

  def __init__(self, path: pathlib.Path, offset: int, data: memoryview):
    """`offset` is where `data` begins in the file at `path`."""
    self.path, self.offset, self._data = path, offset, data
    self._features = self._find_features()

  @property
  def names(self) -> list[str]:
    return sorted(self._features)

  def byte_spans(self, name: str) -> list[Span]:
    """(offset in the file, length) of each byte string of a feature."""
    values = self._values(name, _BYTES_LIST)
    return [(self.offset + s, e - s) for _, s, e in values]

  def texts(self, name: str) -> list[str]:
    values = self._values(name, _BYTES_LIST)
    return [bytes(self._data[s:e]).decode() for _, s, e in values]

  def numbers(self, name: str) -> np.ndarray:
    """float32[n] or int64[n], whichever the feature holds."""
    start, end = self._span(name)
    kinds = [kind for kind, _, _, _ in self._fields(start, end)]
    if _INT64_LIST in kinds:
      return self._integers(name)
    values = self._values(name, _FLOAT_LIST)
    # Packed floats are one block; unpacked ones come as one field each.
    block = b"".join(self._data[s:e] for _, s, e in values)
    return np.frombuffer(block, "<f4")

  def _integers(self, name: str) -> np.ndarray:
    out = []
    for _, position, end in self._values(name, _INT64_LIST):
      while position < end:
        value, position = self._varint(position)
        out.append(value)
    # Varints are unsigned; negative numbers come in two's complement.
    return np.asarray(out, np.uint64).astype(np.int64)

  def _values(self, name: str, kind: int) -> list[tuple[int, int, int]]:
    """(wire type, start, end) of each value field in a feature's list."""
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
      raise ValueError(
        f"{self.path}: got a record without the feature {name!r}; it has "
        f"{', '.join(self.names)}; check the dataset's name and version"
      )
    return self._features[name]

  def _find_features(self) -> dict[str, Span]:
    features = {}
    for field, _, start, end in self._fields(0, len(self._data)):
      if field != 1:
        continue
      for _, _, entry, entry_end in self._fields(start, end):
        key, value = "", (0, 0)
        for part, _, s, e in self._fields(entry, entry_end):
          if part == 1:
            key = bytes(self._data[s:e]).decode()
          else:
            value = (s, e)
        features[key] = value
    return features

  def _fields(self, position: int, end: int) -> list[tuple[int, ...]]:
    """(field number, wire type, start, end) of each field in a message."""
    fields = []
    while position < end:
      tag, position = self._varint(position)
      number, wire = tag >> 3, tag & 7
      start = position
      if wire == _DELIMITED:
        length, start = self._varint(position)
        position = start + length
      elif wire == _VARINT:
        _, position = self._varint(position)
      elif wire in (_FIXED32, _FIXED64):
        position += 4 if wire == _FIXED32 else 8
      else:
        raise ValueError(
          f"{self.path}: got a record at byte {self.offset} that is not a "
          "tf.train.Example; expected TFDS's TFRecord format"
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

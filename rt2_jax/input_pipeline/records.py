"""TFRecord shards as TFDS writes them, read without copying or decoding.

A record is an uncompressed `tf.train.Example`, so the bytes of every image lie
contiguous in the shard: once their offsets are known, any image is one
`pread`. This file compares records with their checksums, and parses only what
it is asked for.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence

import google_crc32c
import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.storage import Storage

_HEADER = struct.Struct("<QI")  # length, masked crc32c of the length
_CHECKSUM = struct.Struct("<I")  # masked crc32c of the data
_FOOTER_SIZE = _CHECKSUM.size

# Wire types and field numbers of tf.train.Example's protocol buffers.
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3

# A split's name, and from which to which percent of its shards.
_PART = re.compile(r"([^\[\]]+)\[(?:(\d+)%)?:(?:(\d+)%)?\]")

Span = tuple[int, int]


def find_shards(storage: Storage, folder: str, split: str) -> list[str]:
  """The TFRecord files of one split of a TFDS dataset version, in order.

  Args:
    storage: where the folder lies.
    folder: the version folder, e.g. `…/fractal20220817_data/0.1.0`.
    split: e.g. "train", or a part of its shards such as "train[:99%]".

  Raises:
    UserError: no dataset there, no such split, or a shard is missing.
  """
  names = storage.names(folder)
  infos = [name for name in names if name.endswith("/dataset_info.json")]
  if not infos:
    raise UserError(
      f"got dataset path {folder!r}, which holds no dataset_info.json; "
      "expected a TFDS version folder such as …/bridge_dataset/1.0.0"
    )
  splits = json.loads(bytes(storage.whole(infos[0])))["splits"]
  lengths = {s["name"]: len(s["shardLengths"]) for s in splits}
  name, part = parse_split(split)
  if name not in lengths:
    raise UserError(
      f"got split {split!r}, expected one of {', '.join(lengths)}, or a part "
      f"such as 'train[:99%]' ({folder})"
    )
  return part(complete(names, name, lengths[name], folder))


def parse_split(split: str) -> tuple[str, Callable[[list[str]], list[str]]]:
  """`"train[:99%]"` -> "train", and what takes that part of its shards.

  Parts are whole shards, so that the last percent of a dataset without a
  held-out split can be held out. Percents are rounded to shards.
  """
  match = _PART.fullmatch(split)
  if not match:
    return split, list
  name, start, stop = match.groups()

  def part(shards: list[str]) -> list[str]:
    first, last = (
      round(int(percent or default) / 100 * len(shards))
      for percent, default in ((start, 0), (stop, 100))
    )
    if not shards[first:last]:
      raise UserError(
        f"got split {split!r} of {len(shards)} shards, expected at least one "
        "shard in it; take more percent"
      )
    return shards[first:last]

  return name, part


def complete(
  names: Sequence[str], split: str, count: int, folder: str
) -> list[str]:
  """The `count` shards of a split among `names`.

  Raises:
    UserError: one is missing, or there are two of one number.
  """
  shards: dict[str, str] = {}
  for name in names:
    if f"-{split}.tfrecord-" not in name:
      continue
    number = name.rpartition(".tfrecord-")[2]
    if number in shards:
      raise UserError(
        f"got both {shards[number]} and {name}, expected one dataset in a "
        "folder; move one of them"
      )
    shards[number] = name
  numbers = [f"{i:05d}-of-{count:05d}" for i in range(count)]
  missing = [number for number in numbers if number not in shards]
  if missing:
    raise UserError(
      f"got {count - len(missing)} of {count} TFRecord shards of split "
      f"{split!r} in {folder}; missing: {', '.join(missing[:5])}; copy them "
      "again"
    )
  return [shards[number] for number in numbers]


def read_records(
  storage: Storage, path: str, damaged: list[str] | None = None
) -> Iterator[Record]:
  """Yields the records of a shard, unparsed, their checksums compared.

  Args:
    storage: where the shard lies.
    path: the shard.
    damaged: gets a line for each damaged record, which is left out; behind a
      damaged length nothing can be found, so one line stands for all the rest
      of the shard. None makes damage an error.

  Raises:
    UserError: damage that is not collected, with file and offset.
  """

  def report(problem: object):
    error = UserError(f"{path}: got {problem}; copy the shard again")
    if damaged is None:
      raise error
    damaged.append(str(error))

  data = storage.whole(path)
  if not data:
    report("an empty TFRecord file")
  offset = 0
  while offset < len(data):
    try:
      start, end = _find_data(data, offset)
    except UserError as problem:
      return report(problem)
    if _is_intact(data, start, end):
      yield Record(path, start, data[start:end])
    else:
      report(f"a record at byte {start} whose checksum is wrong")
    offset = end + _FOOTER_SIZE


def _find_data(data: memoryview, offset: int) -> Span:
  """Where the data of the record at `offset` begins and ends.

  Raises:
    UserError: what is wrong there; from there on nothing can be found.
  """
  start = end = offset + _HEADER.size
  if start <= len(data):
    length, checksum = _HEADER.unpack_from(data, offset)
    if checksum != _masked_crc(data[offset : offset + 8]):
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


def _is_intact(data: memoryview, start: int, end: int) -> bool:
  (checksum,) = _CHECKSUM.unpack_from(data, end)
  return checksum == _masked_crc(data[start:end])


def _masked_crc(data: memoryview) -> int:
  """The checksum of TFRecords (TensorFlow, core/lib/hash/crc32c.h)."""
  crc = google_crc32c.value(bytes(data))
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class Record:
  """One `tf.train.Example`; features are parsed when asked for by name."""

  def __init__(self, path: str, offset: int, data: memoryview):
    """`offset` is where `data` begins in the file at `path`."""
    self.path, self.offset, self.length = path, offset, len(data)
    self._data = data
    self._features = self._find_features()

  @property
  def names(self) -> list[str]:
    return sorted(self._features)

  def byte_spans(self, name: str) -> list[Span]:
    """(offset in the file, length) of each byte string of a feature."""
    values = self._values(name, _BYTES_LIST)
    return [(self.offset + s, e - s) for _, s, e in values]

  def byte_views(self, name: str) -> list[memoryview]:
    """Each byte string of a feature, not copied."""
    return [self._data[s:e] for _, s, e in self._values(name, _BYTES_LIST)]

  def byte_strings(self, name: str) -> list[bytes]:
    return [bytes(view) for view in self.byte_views(name)]

  def texts(self, name: str) -> list[str]:
    return [text.decode() for text in self.byte_strings(name)]

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
      raise UserError(
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
    data = self._data
    while position < end:
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
        raise UserError(
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

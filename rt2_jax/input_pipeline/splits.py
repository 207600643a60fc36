"""Splits of a dataset and parts of them, `train[:90%]`, as TFDS counts them.

A part is a stretch of a split's examples in the order of its shards; an
example is one record: an episode, or an image with its texts. Parts that
complement each other are disjoint and complete.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

from rt2_jax.byte_ranges import Storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import dataset_info

_LOG = logging.getLogger(__name__)

_USUAL = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # files' names
# A split's name, and from where to where it is taken.
_SPLIT = re.compile(
  r"(?P<name>[\w.-]+)(\[(?P<start>[^:\]]*):(?P<stop>[^:\]]*)\])?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_BOUND = re.compile(r"(?P<value>-?[\d_.]+)(?P<unit>%|shard)?")

Span = tuple[int, int]  # first, stop


class Shard(NamedTuple):
  """A file of a split, and its number of records; None: not stated."""

  path: str
  length: int | None


@dataclasses.dataclass(frozen=True)
class Part:
  """The range of a split that is taken.

  Attributes:
    text: the split as it was asked for, e.g. "train[:90%]".
    name: of the split.
    start: first example, None for the split's first; negative from its end.
    stop: the example after the last, None for the split's end.
    unit: of both, "" for examples, or "%" or "shard".
  """

  text: str
  name: str
  start: float | None = None
  stop: float | None = None
  unit: str = ""

  @classmethod
  def parse(cls, text: str) -> Part:
    """Reads the syntax of TFDS: percents, examples or shards.

    Raises:
      UserError: anything else.
    """
    match = _SPLIT.fullmatch(text)
    if not match:
      raise _malformed(text)
    bounds = [_BOUND.fullmatch(match[key] or "") for key in ("start", "stop")]
    for key, bound in zip(("start", "stop"), bounds, strict=True):
      if match[key] and not bound:
        raise _malformed(text)
    units = [bound["unit"] for bound in bounds if bound and bound["unit"]]
    if len(set(units)) > 1:
      raise _malformed(text)
    unit = units[0] if units else ""
    try:
      number = float if unit == "%" else int
      start, stop = (bound and number(bound["value"]) for bound in bounds)
    except ValueError as error:
      raise _malformed(text) from error
    return cls(text, match["name"], start, stop, unit)

  @property
  def is_whole(self) -> bool:
    return self.start is None and self.stop is None

  def spans(self, lengths: Sequence[int]) -> list[Span]:
    """Finds the records of each shard that belong to the part.

    Rounded as TFDS rounds: to the nearest example, halves to an even one.

    Args:
      lengths: records of each shard.

    Raises:
      UserError: a bound that the split does not have, or nothing between them.
    """
    total = sum(lengths)
    first = self._boundary(self.start, 0, lengths)
    stop = self._boundary(self.stop, total, lengths)
    if max(abs(first), abs(stop)) > total:
      raise UserError(
        f"got split {self.text!r} of {total} examples in {len(lengths)} "
        "shards, expected bounds within them; change the split"
      )
    first, stop = (x + total * (x < 0) for x in (first, stop))
    if first >= stop:
      raise UserError(
        f"got split {self.text!r} of {total} examples, expected at least one "
        "example in it; take a larger part"
      )
    spans, begin = [], 0
    for length in lengths:
      spans.append(
        (min(max(first - begin, 0), length), min(max(stop - begin, 0), length))
      )
      begin += length
    return spans

  def _boundary(
    self, value: float | None, default: int, lengths: Sequence[int]
  ) -> int:
    """Converts a bound to examples; negative ones count from the end."""
    if value is None:
      return default
    if self.unit == "%":
      examples = round(value * sum(lengths) / 100.0)
      if value < 0 and not examples:  # would mean the split's beginning
        raise UserError(
          f"got split {self.text!r} of {sum(lengths)} examples, of which "
          f"{value:g}% are none; take a larger part"
        )
      return examples
    if self.unit != "shard":
      return int(value)
    if abs(value) > len(lengths):
      raise UserError(
        f"got split {self.text!r} of {len(lengths)} shards, expected bounds "
        "within them; change the split"
      )
    ends = [0, *itertools.accumulate(lengths)]
    return ends[int(value) + len(lengths) * (value < 0)]


def _malformed(text: str) -> UserError:
  return UserError(
    f"got split {text!r}, expected a split's name, or a part of one such as "
    "'train[:90%]', 'train[10:20]' or 'train[2shard:]'; correct the split"
  )


@dataclasses.dataclass(frozen=True)
class Split:
  """A split, or the part of it that is asked for.

  Attributes:
    part: what is asked for.
    shards: of the whole split, in order.
    dataset: its name in dataset_info.json; "" where none is stated.
  """

  part: Part
  shards: tuple[Shard, ...]
  dataset: str = ""


def version_folder(storage: Storage, folder: str) -> str:
  """Finds the version folder of a dataset that has only one version.

  Args:
    storage: where the folder lies.
    folder: a dataset's folder, or already that of a version.

  Raises:
    UserError: the dataset has several versions.
  """
  names = [name.rstrip("/") for name in storage.names(folder)]
  if f"{folder.rstrip('/')}/{dataset_info.FILE}" in names:
    return folder
  versions = [n for n in names if _VERSION.fullmatch(n.rpartition("/")[2])]
  if len(versions) > 1:
    raise UserError(
      f"got dataset path {folder!r} with several versions, expected one of "
      f"{', '.join(versions)}; name it"
    )
  return versions[0] if versions else folder


def find_split(storage: Storage, folder: str, text: str) -> Split:
  """Finds the TFRecord files of one split of a TFDS dataset version.

  Args:
    storage: where the folder lies.
    folder: the version folder, e.g. `…/fractal20220817_data/0.1.0`.
    text: e.g. "train", or a part of it such as "train[:99%]".

  Raises:
    UserError: no dataset there, no such split, or a shard is missing.
  """
  part = Part.parse(text)
  info = dataset_info.read(storage, folder)
  if info is None:
    raise UserError(
      f"got dataset path {folder!r}, which holds no {dataset_info.FILE}; "
      "expected a TFDS version folder such as …/bridge_dataset/1.0.0"
    )
  if part.name not in info.lengths:
    raise UserError(
      f"got split {text!r}, expected one of {', '.join(info.lengths)}, or a "
      f"part such as 'train[:99%]' ({folder})"
    )
  if not info.lengths[part.name]:
    _LOG.warning(
      "%s in %s states no shardLengths of split %r: a shard that lacks records "
      "at its end cannot be noticed",
      dataset_info.FILE,
      folder,
      part.name,
    )
  return _find_files(storage, folder, part, info)


def find_web_split(storage: Storage, folder: str, text: str) -> Split:
  """Finds the same in a folder of web records, which may state no lengths.

  Raises:
    UserError: no records of that split there, or a shard is missing.
  """
  part = Part.parse(text)
  info = dataset_info.read(storage, folder) or dataset_info.Info("", {}, {})
  return _find_files(storage, folder, part, info)


def _find_files(
  storage: Storage, folder: str, part: Part, info: dataset_info.Info
) -> Split:
  """Finds a split's shards, as many as are stated or as their names say."""
  names, lengths = storage.names(folder), info.lengths.get(part.name)
  if lengths:
    template = info.templates.get(part.name) or _USUAL
    numbered = (
      _by_number(names, part.name)
      if template == _USUAL
      else _by_template(names, template, part.name, info.dataset, len(lengths))
    )
    files = _complete(numbered, part.name, len(lengths), folder)
    shards = tuple(map(Shard, files, lengths))
    return Split(part, shards, info.dataset)
  last = [n for n in names if f"-{part.name}.tfrecord-" in n][-1:]
  count = last[0].rpartition("-of-")[2] if last else ""
  if not count.isdecimal():
    raise UserError(
      f"got path {folder!r}, which holds no *-{part.name}.tfrecord-00000-of-… "
      "files; expected a TFDS version folder, or one that "
      "data/make_web_records.py wrote"
    )
  numbered = _by_number(names, part.name)
  files = _complete(numbered, part.name, int(count), folder)
  return Split(part, tuple(Shard(path, None) for path in files))


def _number(i: int, count: int) -> str:
  return f"{i:05d}-of-{count:05d}"


def _by_number(names: Sequence[str], split: str) -> dict[str, str]:
  """Finds the shards of a split by their number, such as 00003-of-00008.

  Raises:
    UserError: there are two of one number.
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
  return shards


def _by_template(
  names: Sequence[str], template: str, split: str, dataset: str, count: int
) -> dict[str, str]:
  """Finds the same where dataset_info.json has names of another pattern.

  Raises:
    UserError: the pattern has a field that is not known here.
  """
  known = {name.rpartition("/")[2]: name for name in names}
  shards = {}
  for i in range(count):
    fields = {
      "DATASET": dataset,
      "SPLIT": split,
      "FILEFORMAT": "tfrecord",
      "SHARD_INDEX": f"{i:05d}",
      "NUM_SHARDS": f"{count:05d}",
      "SHARD_X_OF_Y": _number(i, count),
    }
    try:
      name = template.format(**fields)
    except (LookupError, ValueError):
      name = "/"
    if "/" in name:
      raise UserError(
        f"got filepathTemplate {template!r} of split {split!r}, expected a "
        f"file's name with the fields {', '.join(fields)}; rename the shards "
        f"as {_USUAL!r} says, and remove it from {dataset_info.FILE}"
      )
    if name in known:
      shards[_number(i, count)] = known[name]
  return shards


def _complete(
  shards: dict[str, str], split: str, count: int, folder: str
) -> list[str]:
  """Lists the `count` shards of a split; raises UserError if one is missing."""
  numbers = [_number(i, count) for i in range(count)]
  missing = [number for number in numbers if number not in shards]
  if missing:
    raise UserError(
      f"got {count - len(missing)} of {count} TFRecord shards of split "
      f"{split!r} in {folder}; missing: {', '.join(missing[:5])}; copy them "
      "again"
    )
  return [shards[number] for number in numbers]

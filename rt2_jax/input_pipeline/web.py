"""Web image-text examples: captions, questions, detection, in TFRecord shards.

A record is a `tf.train.Example` with the features `image` (JPEG or PNG),
`question` (the whole prompt, e.g. "Answer in en: what is on the table?"),
`answers` (one or more texts, which may hold `<loc0123>` tokens), `task` (e.g.
"vqa") and `language`. `data/make_web_records.py` writes them.

Shapes: N examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rt2_jax.input_pipeline import index, records
from rt2_jax.input_pipeline.storage import Request, Storage, open_storage


@dataclasses.dataclass(frozen=True)
class WebConfig:
  """One web source of a mixture, as a config names it.

  Attributes:
    path: folder of the shards `*-{split}.tfrecord-*`.
    split: what to train on.
    weight: share of the mixture, relative to the other web sources.
  """

  path: str
  split: str = "train"
  weight: float = 1.0


class WebExample(NamedTuple):
  """One example, its image still encoded.

  Attributes:
    image: JPEG or PNG bytes.
    question: the prompt.
    answers: all right answers, at least one.
    task: what kind of question it is.
    language: of question and answers, e.g. "en".
  """

  image: bytes
  question: str
  answers: tuple[str, ...]
  task: str
  language: str


@dataclasses.dataclass(frozen=True)
class WebIndex:
  """Where every example of a split lies.

  Attributes:
    files: the shards.
    file: uint32[N], which shard holds the example.
    offset: uint64[N], where its record's data begins.
    length: uint32[N], bytes of the record's data.
  """

  files: tuple[str, ...]
  file: np.ndarray
  offset: np.ndarray
  length: np.ndarray

  def __len__(self) -> int:
    return len(self.offset)

  @property
  def nbytes(self) -> int:
    return self.file.nbytes + self.offset.nbytes + self.length.nbytes

  @classmethod
  def merge(
    cls, files: Sequence[str], shards: Sequence[Mapping[str, np.ndarray]]
  ) -> WebIndex:
    """One index from those that `index_shard` made of each shard."""
    sizes = [len(columns["offset"]) for columns in shards]
    return cls(
      files=tuple(files),
      file=np.repeat(np.arange(len(files), dtype=np.uint32), sizes),
      offset=np.concatenate([c["offset"] for c in shards]),
      length=np.concatenate([c["length"] for c in shards]),
    )


class WebSource:
  """Random access to the examples of an index: one read per example."""

  def __init__(self, storage: Storage, index: WebIndex):
    self.storage = storage
    self.index = index

  def __len__(self) -> int:
    return len(self.index)

  def requests(self, i: int) -> list[Request]:
    """The record of example `i`."""
    where = self.index
    path = where.files[where.file[i]]
    return [Request(path, int(where.offset[i]), int(where.length[i]))]

  def location(self, i: int) -> str:
    """Where example `i` lies, for error messages."""
    (record,) = self.requests(i)
    return f"{record.path}, byte {record.offset}"


def open_source(
  config: WebConfig,
  index_folder: str | None = None,
  num_workers: int | None = None,
) -> WebSource:
  """Indexes one split of a web dataset, or loads its index.

  See `index.load_or_build` for the last two arguments.

  Raises:
    ValueError: no such data, or a record without image, question or answer.
  """
  storage = open_storage(config.path)
  files = find_shards(storage, config)
  shards = index.load_or_build(
    files, index_shard, (), index_folder, num_workers
  )
  merged = WebIndex.merge(files, shards)
  if not len(merged):
    raise ValueError(
      f"got no example in split {config.split!r} of {config.path}"
    )
  return WebSource(storage, merged)


def find_shards(storage: Storage, config: WebConfig) -> list[str]:
  """The files of the split, in order; raises ValueError if one is missing."""
  names = storage.names(config.path)
  last = [n for n in names if f"-{config.split}.tfrecord-" in n][-1:]
  count = last[0].rpartition("-of-")[2] if last else ""
  if not count.isdecimal():
    raise ValueError(
      f"got web path {config.path!r}, which holds no *-{config.split}.tfrecord-"
      "00000-of-… files; expected a folder that data/make_web_records.py wrote"
    )
  return records.complete(names, config.split, int(count), config.path)


def index_shard(storage: Storage, path: str) -> index.Columns:
  """Offset and length of each record of a shard; every one is checked."""
  spans = []
  for record in records.read_records(storage, path):
    parse(record)
    spans.append((record.offset, record.length))
  offset, length = np.asarray(spans, np.uint64).reshape(-1, 2).T
  return {"offset": offset, "length": length.astype(np.uint32)}


def parse(record: records.Record) -> WebExample:
  """The example that a record holds.

  Raises:
    ValueError: a feature is missing or empty; the message names the place.
  """
  (image,) = record.byte_strings("image") or (b"",)
  (question,) = record.texts("question") or ("",)
  answers = tuple(record.texts("answers"))
  for name, value in (
    ("image", image),
    ("question", question),
    ("answers", answers),
  ):
    if not value or (name == "answers" and not all(value)):
      raise ValueError(
        f"{record.path}, byte {record.offset}: got a web record with an empty "
        f"{name!r}, expected image, question and at least one answer; write "
        "it again with data/make_web_records.py"
      )
  (task,) = record.texts("task") or ("",)
  (language,) = record.texts("language") or ("",)
  return WebExample(image, question, answers, task, language)

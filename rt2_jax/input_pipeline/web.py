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

from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import index, records
from rt2_jax.input_pipeline.storage import Request, Storage, open_storage
from rt2_jax.prompt import answer_ids, question_ids
from rt2_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class WebConfig:
  """One web source of a mixture, as a config names it.

  Attributes:
    path: folder of the shards `*-{split}.tfrecord-*`.
    split: what to train on.
    eval_split: what to evaluate on; "" evaluates nothing.
    weight: share of the mixture, relative to the other web sources.
  """

  path: str
  split: str = "train"
  eval_split: str = ""
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
    question: uint16[N], tokens of the prompt.
    answer: uint16[N], tokens of the longest answer.
    damaged: what was left out because it cannot be read, a line each.
  """

  files: tuple[str, ...]
  file: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  question: np.ndarray
  answer: np.ndarray
  damaged: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.offset)

  @property
  def nbytes(self) -> int:
    arrays = (self.file, self.offset, self.length, self.question, self.answer)
    return sum(array.nbytes for array in arrays)

  @classmethod
  def merge(
    cls, files: Sequence[str], shards: Sequence[Mapping[str, np.ndarray]]
  ) -> WebIndex:
    """One index from those that `index_shard` made of each shard."""
    sizes = [len(columns["offset"]) for columns in shards]
    return cls(
      files=tuple(files),
      file=np.repeat(np.arange(len(files), dtype=np.uint32), sizes),
      **{
        name: np.concatenate([columns[name] for columns in shards])
        for name in ("offset", "length", "question", "answer")
      },
      damaged=tuple(index.damaged_in(shards)),
    )

  def only(self, kept: np.ndarray) -> WebIndex:
    """The examples where bool[N] says so, in their order."""
    return dataclasses.replace(
      self,
      **{
        name: getattr(self, name)[kept]
        for name in ("file", "offset", "length", "question", "answer")
      },
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
  tokenizer: Tokenizer,
  index_folder: str | None = None,
  num_workers: int | None = None,
  max_skipped: int = 0,
) -> WebSource:
  """Indexes one split of a web dataset, or loads its index.

  See `index.load_or_build` for the last three arguments.

  Raises:
    UserError: no such data, or a record without image, question or answer.
  """
  storage = open_storage(config.path)
  files = find_shards(storage, config)
  shards = index.load_or_build(
    files, index_shard, (tokenizer,), index_folder, num_workers, max_skipped
  )
  merged = WebIndex.merge(files, shards)
  if not len(merged):
    raise UserError(
      f"got no example in split {config.split!r} of {config.path}"
    )
  return WebSource(storage, merged)


def find_shards(storage: Storage, config: WebConfig) -> list[str]:
  """The files of the split, in order; raises UserError if one is missing."""
  names = storage.names(config.path)
  split, part = records.parse_split(config.split)
  last = [n for n in names if f"-{split}.tfrecord-" in n][-1:]
  count = last[0].rpartition("-of-")[2] if last else ""
  if not count.isdecimal():
    raise UserError(
      f"got web path {config.path!r}, which holds no *-{split}.tfrecord-"
      "00000-of-… files; expected a folder that data/make_web_records.py wrote"
    )
  return part(records.complete(names, split, int(count), config.path))


def index_shard(
  storage: Storage, path: str, tokenizer: Tokenizer
) -> index.Columns:
  """The columns of `WebIndex` for this shard; every record is looked at.

  Texts are counted in tokens here, where they are read anyway, so that a job
  knows at its start which do not fit.
  """
  rows, damaged = [], []
  for record in records.read_records(storage, path, damaged):
    example = parse(record)
    lengths = _token_lengths(record, example, tokenizer)
    rows.append((record.offset, record.length, *lengths))
  table = np.asarray(rows, np.uint64).reshape(-1, 4)
  offset, length, question, answer = table.T
  longest = np.iinfo(np.uint16).max
  return {
    "offset": offset,
    "length": length.astype(np.uint32),
    "question": np.minimum(question, longest).astype(np.uint16),
    "answer": np.minimum(answer, longest).astype(np.uint16),
    "damaged": index.to_column(damaged),
  }


def _token_lengths(
  record: records.Record, example: WebExample, tokenizer: Tokenizer
) -> tuple[int, int]:
  """Tokens of the prompt and of the longest answer."""
  try:
    question = len(question_ids(tokenizer, example.question))
    answers = [
      len(answer_ids(tokenizer.encode(text))) for text in example.answers
    ]
  except UserError as error:
    raise UserError(f"{record.path}, byte {record.offset}: {error}") from error
  return question, max(answers)


def parse(record: records.Record) -> WebExample:
  """The example that a record holds.

  Raises:
    UserError: a feature is missing or empty; the message names the place.
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
      raise UserError(
        f"{record.path}, byte {record.offset}: got a web record with an empty "
        f"{name!r}, expected image, question and at least one answer; write "
        "it again with data/make_web_records.py"
      )
  (task,) = record.texts("task") or ("",)
  (language,) = record.texts("language") or ("",)
  return WebExample(image, question, answers, task, language)

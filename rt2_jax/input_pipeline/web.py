"""Web image-text examples: captions, questions, detection, in TFRecord shards.

A record is a `tf.train.Example` with the features `image` (JPEG or PNG),
`question` (the whole prompt, e.g. "Answer in en: what is on the table?"),
`answers` (one or more texts, which may hold `<loc0123>` tokens), `task` (e.g.
"vqa") and `language`. `data/make_web_records.py` writes them.

Shapes: N examples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from rt2_jax.byte_ranges import Request, Storage, open_storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import index, kept_index, records, splits, unusable
from rt2_jax.input_pipeline.code_hash import code_hash
from rt2_jax.input_pipeline.growing_columns import GrowingColumns
from rt2_jax.input_pipeline.unusable import Unusable
from rt2_jax.prompt import answer_ids, question_ids
from rt2_jax.ranges import between, more_than
from rt2_jax.storage import locate
from rt2_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class WebConfig:
  """One web source of a mixture, as a config names it.

  Attributes:
    path: folder of the shards `*-{split}.tfrecord-*`.
    split: what to train on: a split, or a part of its examples such as
      "train[:99%]", see `splits.Part`.
    eval_split: what to evaluate on; "" evaluates nothing.
    weight: fraction of the mixture, relative to the other web sources.
    weight_by: as in `SourceConfig`; the size is the number of examples.
    augmentation: as in `SourceConfig`.
  """

  path: str
  split: str = "train"
  eval_split: str = ""
  weight: Annotated[float, more_than(0)] = 1.0
  weight_by: str = ""
  augmentation: Annotated[float, between(0, 1)] = 1.0

  @property
  def folder(self) -> str:
    """`path` with `~` and `$VAR` expanded."""
    return str(locate(self.path, "a source's path"))


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
  """Locations of all examples of a split.

  Attributes:
    files: the shards.
    file: uint32[N], which shard holds the example.
    offset: uint64[N], where its record's data begins.
    length: uint32[N], bytes of the record's data.
    checksum: uint32[N], crc32c of the record's data.
    question_length: uint16[N], tokens of the prompt.
    answer_length: uint16[N], tokens of the longest answer.
    damaged: what was left out because it cannot be used.
  """

  files: tuple[str, ...]
  file: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  checksum: np.ndarray
  question_length: np.ndarray
  answer_length: np.ndarray
  damaged: tuple[Unusable, ...]

  def __len__(self) -> int:
    return len(self.offset)

  @property
  def nbytes(self) -> int:
    return sum(getattr(self, name).nbytes for name in ("file", *_COLUMNS))

  @classmethod
  def merge(
    cls, shards: Iterable[index.Indexed], damaged: Sequence[Unusable] = ()
  ) -> WebIndex:
    """Joins the indexes that `index_shard` made of each shard."""
    joined, files = GrowingColumns(), []
    for number, (shard, columns) in enumerate(index.read_all(shards)):
      used = slice(
        *np.searchsorted(columns["record"], [shard.first, shard.stop])
      )
      rows = {name: columns[name][used] for name in _COLUMNS}
      rows["file"] = np.full(len(rows["offset"]), number, np.uint32)
      joined.add(rows)
      files.append(shard.path)
    return cls(tuple(files), **joined.finish(), damaged=tuple(damaged))

  def only(self, kept: np.ndarray) -> WebIndex:
    """Selects the examples where bool[N] is true, in their order."""
    columns = {name: getattr(self, name)[kept] for name in ("file", *_COLUMNS)}
    return dataclasses.replace(self, **columns)


_LENGTHS = ("question_length", "answer_length")
_COLUMNS = ("offset", "length", "checksum", *_LENGTHS)


class WebSource:
  """Random access to the examples of an index: one read per example."""

  def __init__(self, storage: Storage, index: WebIndex):
    self.storage = storage
    self.index = index

  def __len__(self) -> int:
    return len(self.index)

  def requests(self, numbers: Sequence[int]) -> list[list[Request]]:
    """Requests the record of each example."""
    index, chosen = self.index, np.asarray(numbers, np.int64)
    columns = (index.file, index.offset, index.length, index.checksum)
    places = zip(*(column[chosen].tolist() for column in columns), strict=True)
    return [[Request(index.files[file], *place)] for file, *place in places]

  def location(self, i: int) -> str:
    """Locates example `i`, for error messages."""
    ((record,),) = self.requests([i])
    return f"{record.path}, byte {record.offset}"

  @functools.cached_property
  def fingerprint(self) -> str:
    """Names the examples and their order, wherever the files lie."""
    columns = (getattr(self.index, name) for name in ("file", *_COLUMNS))
    return kept_index.fingerprint(columns)


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
    UserError: no such data, or more than may be left out cannot be used.
  """
  storage = open_storage(config.folder)
  recipe = kept_index.Recipe(
    index_shard,
    arguments=(tokenizer,),
    name=(tokenizer.sha256,),
    depends={"reader": code_hash(index_shard, Tokenizer)},
  )
  shards, damaged = index.load_or_build(
    splits.find_web_split(storage, config.folder, config.split),
    recipe,
    index_folder,
    num_workers,
    max_skipped,
  )
  merged = WebIndex.merge(shards, damaged)
  if not len(merged):
    problems = [f"; {loss.problem}" for loss in damaged[:1]]
    raise UserError(
      f"got no example in split {config.split!r} of {config.path}"
      f"{''.join(problems)}"
    )
  return WebSource(storage, merged)


def index_shard(
  storage: Storage, path: str, tokenizer: Tokenizer
) -> kept_index.Columns:
  """Indexes one shard as columns of `WebIndex`; reads every record.

  Texts are counted in tokens here, where they are read anyway, so that a job
  knows at its start which do not fit. `record` is each example's number in
  the shard. Damaged examples are left out, and listed.
  """
  rows: list[tuple[int, ...]] = []
  damaged: list[Unusable] = []
  seen = 0
  for record in records.read_records(storage, path, damaged):
    seen = record.number + 1
    try:
      example = parse(record)
      lengths = _token_lengths(record, example, tokenizer)
    except UserError as problem:
      damaged.append(Unusable(str(problem), record.number))
      continue
    place = (record.number, record.offset, record.length, record.checksum)
    rows.append((*place, *lengths))
  broken = [loss.record + 1 for loss in damaged if loss.records]
  table = np.asarray(rows, np.uint64).reshape(-1, 6)
  number, offset, length, checksum, *token_lengths = table.T
  longest = np.iinfo(np.uint16).max
  token_lengths = [
    np.minimum(n, longest).astype(np.uint16) for n in token_lengths
  ]
  return {
    "record": number.astype(np.uint32),
    "offset": offset,
    "length": length.astype(np.uint32),
    "checksum": checksum.astype(np.uint32),
    **dict(zip(_LENGTHS, token_lengths, strict=True)),
    "num_records": np.asarray(max([seen, *broken])),
    "damaged": unusable.to_column(damaged),
  }


def _token_lengths(
  record: records.Record, example: WebExample, tokenizer: Tokenizer
) -> tuple[int, int]:
  """Tokens of the prompt and of the longest answer."""
  try:
    question_length = len(question_ids(tokenizer, example.question))
    answer_lengths = [
      len(answer_ids(tokenizer.encode(text))) for text in example.answers
    ]
  except UserError as error:
    raise UserError(f"{record.where}: {error}") from error
  return question_length, max(answer_lengths)


def parse(record: records.Record) -> WebExample:
  """Parses the example of a record.

  Raises:
    UserError: a feature is missing or empty; the message names the place.
  """
  image = _only(record, "image", record.byte_strings("image"), b"")
  question = _only(record, "question", record.texts("question"), "")
  answers = tuple(record.texts("answers"))
  for name, value in (
    ("image", [image]),
    ("question", [question]),
    ("answers", answers),
  ):
    if not value or not all(each.strip() for each in value):
      raise UserError(
        f"{record.where}: got a web record with an empty "
        f"{name!r}, expected image, question and at least one answer; write "
        "it again with data/make_web_records.py"
      )
  task = _only(record, "task", record.texts("task"), "")
  language = _only(record, "language", record.texts("language"), "")
  return WebExample(image, question, answers, task, language)


def _only(record: records.Record, name: str, values: list, default):
  """Returns the one value of a feature; raises UserError if there are more."""
  if len(values) > 1:
    raise UserError(
      f"{record.where}: got {len(values)} values of {name!r}, expected one; "
      "write the records again with data/make_web_records.py"
    )
  return values[0] if values else default

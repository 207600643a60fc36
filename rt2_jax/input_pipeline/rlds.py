"""Robot steps in RLDS form: an index of steps, and random access to them.

The index holds where each image lies and everything small (actions,
instructions), 60 bytes per step; images stay in the shards, encoded, until a
step is drawn. So there is no shuffle buffer, and memory is flat.

Shapes: T steps of an episode, n of them kept, N steps in all, D action
dimensions, F frames.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import image_size, records, unusable
from rt2_jax.input_pipeline.episodes import (
  Canonical,
  Episode,
  Filters,
  WrongFunctionError,
  count_steps,
)
from rt2_jax.input_pipeline.kept_index import (
  Columns,
  fingerprint,
  to_column,
)
from rt2_jax.input_pipeline.step_index import StepIndex, check_plans
from rt2_jax.input_pipeline.unusable import Unusable
from rt2_jax.storage import Request, Storage


class _Kept(NamedTuple):
  """What an index takes from one episode.

  Attributes:
    record: its number in the shard.
    images: (offset, length, checksum) of every image.
    size: height and width that hold them.
    steps: int[n], the steps that are kept.
    instruction: n texts.
    plan: n texts, or none.
    action: float32[n, D].
  """

  record: int
  images: list[tuple[int, int, int]]
  size: tuple[int, int]
  steps: np.ndarray
  instruction: list[str]
  plan: list[str]
  action: np.ndarray


def index_episodes(
  storage: Storage,
  path: str,
  camera: str,
  standardize: Callable[[Episode], Canonical],
  space: ActionSpace,
  filters: Filters,
) -> Columns:
  """Reads every record's small features once; decodes no image.

  Args:
    storage: where the shard lies.
    path: a shard, from `splits.find_split`.
    camera: the image feature to use, e.g. "observation/image_0".
    standardize: the dataset's conventions, from `datasets.DATASETS`.
    space: what the D numbers of an action mean.
    filters: what to leave out.

  Returns:
    The columns of `StepIndex` for this shard, with images, episodes, texts
    and plans numbered from 0; `record`, uint32[E], each episode's record; and
    `num_records`. Damaged episodes are left out, and listed. Episodes without
    steps are left out.

  Raises:
    UserError: `standardize` contradicts itself, see `Canonical.check`.
  """
  kept: list[_Kept] = []
  damaged: list[Unusable] = []
  seen = 0
  for record in records.read_records(storage, path, damaged, count_steps):
    seen = record.number + 1
    try:
      if filters.keep_episode(record):
        kept.append(_read(Episode(record), camera, standardize, space, filters))
    except WrongFunctionError:
      raise
    except UserError as problem:
      damaged.append(_damaged(record, problem))
  broken = [loss.record + 1 for loss in damaged if loss.records]
  kept = [each for each in kept if len(each.steps)]
  return {
    **_columns(kept, len(space)),
    "num_records": np.asarray(max([seen, *broken])),
    "damaged": unusable.to_column(damaged),
  }


def _read(
  episode: Episode,
  camera: str,
  standardize: Callable[[Episode], Canonical],
  space: ActionSpace,
  filters: Filters,
) -> _Kept:
  """Takes from an episode what an index holds.

  Raises:
    UserError: the episode is damaged, or `standardize` contradicts itself.
  """
  record = episode.record
  if not episode.length:
    if f"steps/{camera}" in record.names:
      episode.image_spans(camera)  # raises where there are steps after all
    return _Kept(record.number, [], (0, 0), np.arange(0), [], [], np.empty(0))
  try:
    canonical = standardize(episode)
  except UserError:
    raise
  except Exception as error:
    error.add_note(f"in the dataset's function, for {episode.where}")
    raise
  steps = canonical.check(episode.length, space, episode.where)
  rows = np.flatnonzero(filters.keep_steps(canonical.action, space))
  spans = episode.image_spans(camera)
  images = [record.view(span) for span in spans]
  checksums = [google_crc32c.value(bytes(image)) for image in images]
  return _Kept(
    record.number,
    [(*span, crc) for span, crc in zip(spans, checksums, strict=True)],
    image_size.largest_size(images),
    steps[rows],
    [canonical.instruction[row] for row in rows],
    [canonical.plan[row] for row in rows] if canonical.plan else [],
    canonical.action[rows],
  )


def _damaged(record: records.Record, problem: UserError) -> Unusable:
  """An episode that cannot be used; it counts as many examples as steps."""
  line = str(problem)
  if not line.startswith(record.path):
    line = f"{record.where}, episode {record.number}: {line}"
  return Unusable(
    line, record.number, examples=records.count_or_one(record, count_steps)
  )


def _columns(kept: Sequence[_Kept], num_dimensions: int) -> Columns:
  """The episodes of a shard as columns."""
  images = [image for each in kept for image in each.images]
  offset, length, checksum = np.asarray(images, np.uint64).reshape(-1, 3).T
  starts = np.cumsum([0, *(len(each.images) for each in kept)])[:-1]
  frames = [s + each.steps for s, each in zip(starts, kept, strict=True)]
  steps = [len(each.steps) for each in kept]
  text, texts = _numbered([t for each in kept for t in each.instruction])
  plan, plans = _numbered([t for each in kept for t in each.plan])
  check_plans(len(plan), sum(steps))
  action = [np.empty((0, num_dimensions)), *(each.action for each in kept)]
  return {
    "offset": offset,
    "length": length.astype(np.uint32),
    "checksum": checksum.astype(np.uint32),
    "record": np.asarray([each.record for each in kept], np.uint32),
    "start": starts.astype(np.uint32),
    "size": image_size.as_column([each.size for each in kept]),
    "frame": np.concatenate([[], *frames]).astype(np.uint32),
    "episode": np.repeat(np.arange(len(kept), dtype=np.uint32), steps),
    "text": text,
    "texts": to_column(texts),
    "plan": plan,
    "plans": to_column(plans),
    "action": np.concatenate(action).astype(np.float32),
  }


def _numbered(texts: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
  """Which of the different texts each is, uint32[n], and those texts."""
  known: dict[str, int] = {}
  numbers = [known.setdefault(text, len(known)) for text in texts]
  return np.asarray(numbers, np.uint32), known


class StepSource:
  """Random access to the steps of an index; images stay encoded."""

  def __init__(self, storage: Storage, index: StepIndex, num_frames: int = 1):
    """`num_frames` F: the step's own image and the F-1 before it."""
    self.storage = storage
    self.index = index
    self.num_frames = num_frames

  def __len__(self) -> int:
    return len(self.index)

  def only(self, kept: np.ndarray) -> StepSource:
    """The steps where bool[N] says so, in their order."""
    return StepSource(self.storage, self.index.only(kept), self.num_frames)

  @property
  def largest_image(self) -> tuple[int, int]:
    """(height, width) in pixels that hold every image of the source.

    Read from the images' headers when they were indexed. An image without a
    readable header counts for nothing.
    """
    height, width = self.index.size.max(0, initial=0)
    return int(height), int(width)

  def requests(self, i: int) -> list[Request]:
    """The F images shown at step `i`, oldest first.

    They are the camera's own last images, also where a filter leaves out the
    steps before. Before an episode's start its first image is repeated.
    """
    index = self.index
    last, first = int(index.frame[i]), int(index.start[index.episode[i]])
    frames = range(last - self.num_frames + 1, last + 1)
    return [self._image(i, max(first, frame)) for frame in frames]

  def instruction(self, i: int) -> str:
    return self.index.texts[self.index.text[i]]

  def plan(self, i: int) -> str:
    """What precedes step `i`'s action; "" in a dataset without plans."""
    index = self.index
    return index.plans[index.plan[i]] if index.plans else ""

  def location(self, i: int) -> str:
    """Where step `i`'s image lies, for error messages."""
    image = self._image(i, int(self.index.frame[i]))
    return f"{image.path}, byte {image.offset}"

  def _image(self, i: int, frame: int) -> Request:
    """An image of step `i`'s episode."""
    index = self.index
    return Request(
      index.files[index.file[index.episode[i]]],
      int(index.offset[frame]),
      int(index.length[frame]),
      int(index.checksum[frame]),
    )

  @functools.cached_property
  def fingerprint(self) -> str:
    """Names the examples and their order, wherever the files lie."""
    i = self.index
    images = (i.offset, i.length, i.checksum, i.file, i.start)
    steps = (i.frame, i.episode, i.text, i.plan, i.action)
    return fingerprint((*images, *steps, i.texts, i.plans))

"""Indexes a shard of robot episodes in RLDS form.

Small features are read once, into columns; images stay in the shard.

Shapes: T steps of an episode, n of them kept, E episodes, C cameras, D action
dimensions, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.byte_ranges import Storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import image_size, records, unusable
from rt2_jax.input_pipeline.episodes import (
  Canonical,
  Episode,
  WrongFunctionError,
  count_steps,
)
from rt2_jax.input_pipeline.filters import Filters
from rt2_jax.input_pipeline.kept_index import Columns, to_column
from rt2_jax.input_pipeline.resampling import resample
from rt2_jax.input_pipeline.step_index import check_plans
from rt2_jax.input_pipeline.unusable import Unusable


class RobotState(NamedTuple):
  """Reads a robot's state from its records.

  Attributes:
    space: what the S numbers mean.
    read: an episode's states, float32[T, S] in physical units.
  """

  space: ActionSpace
  read: Callable[[Episode], np.ndarray]


class Reading(NamedTuple):
  """The parts of a dataset's records that an index takes.

  Attributes:
    cameras: C image features, such as "observation/image_0".
    standardize: the dataset's conventions, from `datasets.DATASETS`.
    space: what the D numbers of an action mean.
    state: the robot's state; None reads none.
    stride: recorded steps that make one step, see `resampling.resample`.
  """

  cameras: tuple[str, ...]
  standardize: Callable[[Episode], Canonical]
  space: ActionSpace
  state: RobotState | None = None
  stride: int = 1


class _Kept(NamedTuple):
  """The parts of one episode that an index takes.

  Attributes:
    record: its number in the shard.
    images: uint64[3, T, C], offset, length and checksum of every image.
    size: height and width that hold them.
    frames: int[n], the images that the kept steps show.
    instruction: n texts.
    plan: n texts, or none.
    action: float32[n, D].
    state: float32[n, S].
  """

  record: int
  images: np.ndarray
  size: tuple[int, int]
  frames: np.ndarray
  instruction: list[str]
  plan: list[str]
  action: np.ndarray
  state: np.ndarray


def index_episodes(
  storage: Storage, path: str, reading: Reading, filters: Filters
) -> Columns:
  """Reads every record's small features once; decodes no image.

  Args:
    storage: where the shard lies.
    path: a shard, from `splits.find_split`.
    reading: what to take from a record.
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
        kept.append(_read(Episode(record), reading, filters))
    except WrongFunctionError:
      raise
    except UserError as problem:
      damaged.append(_damaged(record, problem))
  broken = [loss.record + 1 for loss in damaged if loss.records]
  kept = [each for each in kept if len(each.frames)]
  return {
    **_columns(kept, reading),
    "num_records": np.asarray(max([seen, *broken])),
    "damaged": unusable.to_column(damaged),
  }


def _read(episode: Episode, reading: Reading, filters: Filters) -> _Kept:
  """Takes from an episode what an index holds.

  Raises:
    UserError: the episode is damaged, or the dataset's functions contradict
      themselves.
  """
  record = episode.record
  if not episode.length:
    for camera in reading.cameras:
      if f"steps/{camera}" in record.names:
        episode.image_spans(camera)  # raises where there are steps after all
    none = np.empty(0)
    return _Kept(record.number, none, (0, 0), np.arange(0), [], [], none, none)
  canonical, state = _standardized(episode, reading)
  steps = canonical.check(episode.length, reading.space, episode.where)
  images, size = _images(episode, reading.cameras)
  frames = steps
  if reading.stride > 1:
    canonical, steps = resample(canonical, steps, reading.space, reading.stride)
    images, frames = images[:, steps], np.arange(len(steps))
  rows = np.flatnonzero(filters.keep_steps(canonical, reading.space))
  return _Kept(
    record.number,
    images,
    size,
    frames[rows],
    [canonical.instruction[row] for row in rows],
    [canonical.plan[row] for row in rows] if canonical.plan else [],
    canonical.action[rows],
    state[steps[rows]],
  )


def _standardized(
  episode: Episode, reading: Reading
) -> tuple[Canonical, np.ndarray]:
  """Converts an episode to canonical form, and reads float32[T, S] states.

  Raises:
    UserError: the episode is damaged, or its states are of another shape or
      not finite.
  """
  try:
    canonical = reading.standardize(episode)
    if reading.state is None:
      return canonical, np.empty((episode.length, 0), np.float32)
    state = np.asarray(reading.state.read(episode), np.float32)
  except UserError:
    raise
  except Exception as error:
    error.add_note(f"in the dataset's function, for {episode.where}")
    raise
  names = reading.state.space.names
  if state.shape != (episode.length, len(names)):
    raise WrongFunctionError(
      f"{episode.where}: got states {list(state.shape)} from the dataset's "
      f"function, expected [{episode.length}, {len(names)}]: one for each step "
      f"of the episode, of {', '.join(names)}; correct the function"
    )
  bad = np.argwhere(~np.isfinite(state))
  if bad.size:
    step, number = bad[0]
    raise UserError(
      f"{episode.where}: got {state[step, number]} for {names[number]!r} of "
      f"the state in step {step}, expected a finite number; repair or drop "
      "this episode"
    )
  return canonical, state


def _images(
  episode: Episode, cameras: Sequence[str]
) -> tuple[np.ndarray, tuple[int, int]]:
  """Locates all images, uint64[3, T, C], and finds the size that holds them."""
  columns, views = [], []
  for camera in cameras:
    spans = episode.image_spans(camera)
    images = [episode.record.view(span) for span in spans]
    checksums = [google_crc32c.value(bytes(image)) for image in images]
    offset, length = zip(*spans, strict=True)
    columns.append([offset, length, checksums])
    views += images
  placed = np.moveaxis(np.asarray(columns, np.uint64), 0, -1)
  return placed, image_size.largest_size(views)


def _damaged(record: records.Record, problem: UserError) -> Unusable:
  """Lists a damaged episode; it counts as many examples as steps."""
  line = str(problem)
  if not line.startswith(record.path):
    line = f"{record.where}, episode {record.number}: {line}"
  return Unusable(
    line, record.number, examples=records.count_or_one(record, count_steps)
  )


def _columns(kept: Sequence[_Kept], reading: Reading) -> Columns:
  """Converts the episodes of a shard to columns."""
  none = np.empty((3, 0, len(reading.cameras)), np.uint64)
  images = [none, *(each.images for each in kept)]
  offset, length, checksum = np.concatenate(images, axis=1)
  starts = np.cumsum([0, *(each.images.shape[1] for each in kept)])[:-1]
  frames = [s + each.frames for s, each in zip(starts, kept, strict=True)]
  steps = [len(each.frames) for each in kept]
  text, texts = _numbered([t for each in kept for t in each.instruction])
  plan, plans = _numbered([t for each in kept for t in each.plan])
  check_plans(len(plan), sum(steps))
  action = [np.empty((0, len(reading.space))), *(each.action for each in kept)]
  width = len(reading.state.space) if reading.state else 0
  state = [np.empty((0, width)), *(each.state for each in kept)]
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
    "state": np.concatenate(state).astype(np.float32),
  }


def _numbered(texts: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
  """Numbers the different texts, uint32[n], and lists them."""
  known: dict[str, int] = {}
  numbers = [known.setdefault(text, len(known)) for text in texts]
  return np.asarray(numbers, np.uint32), known

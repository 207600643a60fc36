"""All episodes of a split as arrays, for checks; pictures stay encoded.

Shapes: T steps of an episode, D action dimensions, S numbers of a state, C
cameras.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence

import google_crc32c
import numpy as np
import tqdm

from rt2_jax.byte_ranges import Request, open_storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import records, splits
from rt2_jax.input_pipeline.dataset_names import check_name
from rt2_jax.input_pipeline.episodes import (
  Episode,
  WrongFunctionError,
  count_steps,
)
from rt2_jax.input_pipeline.robot_dataset import RobotDataset
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.input_pipeline.unusable import Unusable

_STAMPS = "steps/timestamp"


@dataclasses.dataclass(frozen=True)
class Recorded:
  """One episode in canonical form.

  Attributes:
    name: its place, for messages.
    action: float32[T, D] in physical units.
    state: float32[T, S]; S = 0 where the data set has none.
    texts: the instruction of each step.
    timestamp: float32[T] in seconds, or None.
    pictures: crc32c of each camera's pictures, uint32[T, C].
    shown: place of a picture of each camera.
  """

  name: str
  action: np.ndarray
  state: np.ndarray
  texts: Sequence[str]
  timestamp: np.ndarray | None
  pictures: np.ndarray
  shown: tuple[Request, ...]


@dataclasses.dataclass(frozen=True)
class RecordedSplit:
  """A split of a data set.

  Attributes:
    config: names it.
    robot: what its records mean.
    episodes: all that can be read.
    damaged: what cannot.
    stated: records that dataset_info.json states, or None.
    found: records that are there.
  """

  config: SourceConfig
  robot: RobotDataset
  episodes: list[Recorded]
  damaged: list[Unusable]
  stated: int | None
  found: int

  @functools.cached_property
  def action(self) -> np.ndarray:
    """Joins every step's action, float32[N, D]."""
    width = len(self.robot.space)
    empty = np.empty((0, width), np.float32)
    return np.concatenate([empty, *(e.action for e in self.episodes)])


def read_split(config: SourceConfig, split: str) -> RecordedSplit:
  """Reads small features and pictures' checksums of a split, or of a part.

  Raises:
    UserError: no such data set, or a description that does not fit it.
  """
  storage = open_storage(config.folder)
  folder = splits.version_folder(storage, config.folder)
  found = splits.find_split(storage, folder, split)
  check_name(config.dataset, config.folder, found.dataset, storage)
  robot, damaged, episodes, count = config.robot, [], [], 0
  spans = _spans(found)
  bar = tqdm.tqdm(found.shards, unit=" shards", mininterval=1)
  for shard, (first, stop) in zip(bar, spans, strict=True):
    if first == stop:
      continue
    lost: list[Unusable] = []
    for record in records.read_records(storage, shard.path, lost, count_steps):
      if not first <= record.number < stop:
        continue
      count += 1
      try:
        episodes.append(_read(Episode(record), robot))
      except WrongFunctionError:
        raise
      except UserError as problem:
        damaged.append(Unusable(str(problem), record.number))
    # Without a number of records it is all the rest of the shard.
    damaged += [
      loss
      for loss in lost
      if loss.record < stop and (loss.record >= first or not loss.records)
    ]
  lengths = [shard.length for shard in found.shards]
  stated = None
  if None not in lengths:
    stated = sum(stop - first for first, stop in found.part.spans(lengths))
  return RecordedSplit(config, robot, episodes, damaged, stated, count)


def _spans(split: splits.Split) -> list[splits.Span]:
  """Finds the records of each shard that belong to the part asked for.

  A whole shard is read to its end, to find more than is stated; training reads
  nothing of one that is stated to be empty.

  Raises:
    UserError: nothing states how many records there are.
  """
  lengths = [shard.length for shard in split.shards]
  if split.part.is_whole:
    return [(0, 0 if length == 0 else sys.maxsize) for length in lengths]
  if None in lengths:
    raise UserError(
      f"got split {split.part.text!r} of shards whose lengths "
      f"dataset_info.json does not state, expected {split.part.name!r}; check "
      "all of it"
    )
  return split.part.spans(lengths)


def _read(episode: Episode, robot: RobotDataset) -> Recorded:
  """Reads one episode; raises UserError where it is damaged."""
  if not episode.length:
    raise UserError(f"{episode.where}: got an episode without a step; drop it")
  canonical = robot.standardize(episode)
  steps = canonical.check(episode.length, robot.space, episode.where)
  state = np.empty((len(steps), 0), np.float32)
  if robot.state:
    state = np.asarray(robot.state.read(episode), np.float32)[steps]
  record, stamps = episode.record, None
  if _STAMPS in record.names:
    stamps = episode.numbers("timestamp", 1)[steps, 0].astype(np.float64)
  spans = [episode.image_spans(name) for name in robot.cameras.values()]
  pictures = [
    [google_crc32c.value(bytes(record.view(places[t]))) for t in steps]
    for places in spans
  ]
  middle = steps[len(steps) // 2] if len(steps) else 0
  return Recorded(
    f"{os.path.basename(record.path)}, episode {record.number}",
    np.asarray(canonical.action, np.float32),
    state,
    list(canonical.instruction),
    stamps,
    np.asarray(pictures, np.uint32).T,
    tuple(Request(record.path, *places[middle]) for places in spans),
  )

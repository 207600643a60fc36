"""Recordings become shards of RLDS episodes: in processes, and resumably.

A shard holds a fixed stretch of the episodes, so that any number of processes
writes the same bytes. A finished shard is renamed into place, with a file of
its figures beside it; a call that was stopped goes on with what is missing.

Shapes: T steps of an episode, N of a shard, A numbers of an action, S of a
state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# TensorFlow reads this when it is imported, and is quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image

from data.conversions import Conversions
from data.orientation import is_upright, turn_upright
from data.record_files import RecordFile
from data.recordings import Column, Layout, Picture, Recording, Recordings
from rt2_jax import storage
from rt2_jax.errors import UserError
from rt2_jax.images import check_sides, decode, is_jpeg, to_rgb
from rt2_jax.input_pipeline.episodes import check_finite

VERSION = "1.0.0"


class Pictures(NamedTuple):
  """How pictures are stored.

  Attributes:
    size: height and width, or None for those of the recording.
    quality: of JPEG. Pictures that are JPEGs of that size stay as they are.
  """

  size: tuple[int, int] | None
  quality: int

  def encode(self, picture: Picture) -> bytes:
    """Encodes a picture, or returns the JPEG that it is."""
    if isinstance(picture, bytes):
      pixels = decode(picture)  # training will decode it, too
      if is_jpeg(picture):
        with Image.open(io.BytesIO(picture)) as opened:
          if not is_upright(opened):
            pixels = np.asarray(to_rgb(turn_upright(opened)))
          elif self.size in (None, pixels.shape[:2]):
            return picture
      picture = pixels
    check_sides(*picture.shape[:2])
    if self.size and picture.shape[:2] != self.size:
      height, width = self.size
      resized = Image.fromarray(picture).resize(
        (width, height), Image.Resampling.BILINEAR
      )
      picture = np.asarray(resized)
    return simplejpeg.encode_jpeg(
      np.ascontiguousarray(picture),
      quality=self.quality,
      colorsubsampling="420" if self.quality < 95 else "444",
    )


class Shard(NamedTuple):
  """A stretch of a split's episodes, by their numbers."""

  split: str
  number: int
  episodes: tuple[int, ...]

  @property
  def file(self) -> str:
    return f"{self.split}-{self.number:05d}"


class Written(NamedTuple):
  """What a finished shard holds.

  Attributes:
    lengths: steps of each episode that is in it.
    num_bytes: of the records.
    problems: one line for each episode that is not.
    notes: oddities that did no harm.
    action: float32[N, A].
    state: float32[N, S].
  """

  lengths: list[int]
  num_bytes: int
  problems: list[str]
  notes: list[str]
  action: np.ndarray
  state: np.ndarray


@dataclasses.dataclass(frozen=True)
class ShardWriter:
  """Writes shards into a folder; it travels to other processes.

  Attributes:
    recordings: the episodes.
    conversions: of their numbers.
    pictures: how they are stored.
    folder: gets the shards.
  """

  recordings: Recordings
  conversions: Conversions
  pictures: Pictures
  folder: Path

  def features(self) -> tfds.features.FeaturesDict:
    """Describes an episode, for TFDS."""
    layout = self.conversions.convert_layout(self.recordings.layout)
    return episode_features(layout, self.pictures.size)

  def write(self, shard: Shard) -> Written:
    """Writes a shard, unless it is there; leaves out damaged episodes."""
    found = read_written(self.folder, shard)
    if found and not found.problems:
      return found
    features = self.features()
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    problems, notes, num_bytes = [], [], 0
    unfinished = self.folder / f".{shard.file}.{os.getpid()}.unfinished"
    try:
      with contextlib.closing(RecordFile(unfinished)) as writer:
        for number in shard.episodes:
          name = self.recordings.names[number]
          try:
            example, numbers, said = self._episode(number)
            data = features.serialize_example(features.encode_example(example))
          except UserError as problem:
            problems.append(f"{name}: {problem}")
            continue
          writer.write(data)
          num_bytes += len(data)
          kept.append(numbers)
          notes += [f"{name}: {note}" for note in said]
      os.replace(unfinished, self.folder / shard.file)
    finally:
      unfinished.unlink(missing_ok=True)
    layout = self.conversions.convert_layout(self.recordings.layout)
    empty = (
      np.empty((0, len(layout.action))),
      np.empty((0, len(layout.state))),
    )
    action, state = (
      np.concatenate(each).astype(np.float32)
      for each in zip(empty, *kept, strict=True)
    )
    lengths = [len(numbers) for numbers, _ in kept]
    written = Written(lengths, num_bytes, problems, notes, action, state)
    _state_written(self.folder, shard, written)
    return written

  def _episode(
    self, number: int
  ) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray], Sequence[str]]:
    """Reads an episode: what TFDS encodes, its numbers, its notes."""
    recording = self.recordings.read(number)
    layout = self.recordings.layout
    _check_width(recording.action, layout.action, "an action")
    _check_width(recording.state, layout.state, "a state")
    action, state = self.conversions.convert(recording.action, recording.state)
    if not len(action):
      raise UserError("got an episode without a step; drop it")
    check_finite(action, "the action")
    check_finite(state, "the state")
    # No frame of a video is at such a time.
    check_finite(recording.timestamp[:, None], "the time stamps")
    steps = list(self._steps(recording, action, state))
    metadata = {
      "episode_id": number,
      "recording": self.recordings.names[number],
    }
    example = {"steps": steps, "episode_metadata": metadata}
    return example, (action, state), recording.notes

  def _steps(
    self, recording: Recording, action: np.ndarray, state: np.ndarray
  ) -> Iterator[dict[str, Any]]:
    length = len(action)
    cameras = dict(recording.images)
    encoded = {
      name: [self.pictures.encode(picture) for picture in pictures]
      for name, pictures in cameras.items()
    }
    for what, values in (
      *((f"pictures of {name}", images) for name, images in encoded.items()),
      ("states", state),
      ("texts", recording.instruction),
      ("time stamps", recording.timestamp),
    ):
      if len(values) != length:
        raise UserError(
          f"got {len(values)} {what} and {length} actions, expected as many; "
          "drop this episode"
        )
    stamps = recording.timestamp
    for t in range(length):
      observation = {name: images[t] for name, images in encoded.items()}
      if state.shape[1]:
        observation["state"] = state[t].astype(np.float32)
      yield {
        "action": action[t].astype(np.float32),
        "is_first": t == 0,
        "is_last": t == length - 1,
        "is_terminal": t == length - 1,
        "language_instruction": recording.instruction[t],
        "observation": observation,
        # TFDS stores 32 bits: too few for seconds since 1970.
        "timestamp": np.float32(stamps[t] - stamps[0]),
      }


def _check_width(values: np.ndarray, columns: Sequence[Column], what: str):
  """Raises UserError where an episode has other numbers than the first."""
  if values.shape[1] != len(columns):
    raise UserError(
      f"got {values.shape[1]} numbers of {what}, expected {len(columns)} as in "
      "the first episode; import the episodes of another robot by themselves"
    )


def episode_features(
  layout: Layout, size: tuple[int, int] | None
) -> tfds.features.FeaturesDict:
  """Describes an episode of that layout; sizes vary where `size` is None."""
  image = tfds.features.Image(
    shape=(*(size or (None, None)), 3), encoding_format="jpeg"
  )
  observation: dict[str, Any] = dict.fromkeys(layout.cameras, image)
  if layout.state:
    observation["state"] = tfds.features.Tensor(
      shape=(len(layout.state),), dtype=np.float32
    )
  return tfds.features.FeaturesDict(
    {
      "episode_metadata": {
        "episode_id": tfds.features.Scalar(dtype=np.int64),
        "recording": tfds.features.Text(),
      },
      "steps": tfds.features.Dataset(
        {
          "action": tfds.features.Tensor(
            shape=(len(layout.action),), dtype=np.float32
          ),
          "is_first": np.bool_,
          "is_last": np.bool_,
          "is_terminal": np.bool_,
          "language_instruction": tfds.features.Text(),
          "observation": observation,
          "timestamp": tfds.features.Scalar(dtype=np.float32),
        }
      ),
    }
  )


def plan_shards(
  num_episodes: int, val_every: int, episodes_per_shard: int
) -> list[Shard]:
  """Deals episodes to splits and shards.

  Args:
    num_episodes: of the whole data set.
    val_every: every n-th episode goes to "val"; 0: all to "train".
    episodes_per_shard: at most.

  Raises:
    UserError: no episode is left for "train".
  """
  if val_every == 1:
    raise UserError(
      "got --val_every=1, with which every episode is for validation, expected "
      "0 for none, or at least 2"
    )
  is_val = [
    val_every > 0 and n % val_every == val_every - 1
    for n in range(num_episodes)
  ]
  shards = []
  for split, wanted in (("train", False), ("val", True)):
    numbers = [n for n in range(num_episodes) if is_val[n] == wanted]
    for i in range(0, len(numbers), episodes_per_shard):
      stretch = tuple(numbers[i : i + episodes_per_shard])
      shards.append(Shard(split, i // episodes_per_shard, stretch))
  return shards


def read_written(folder: Path, shard: Shard) -> Written | None:
  """Reads what a finished shard holds; None where it is not finished."""
  path = folder / f"{shard.file}.npz"
  if not path.exists() or not (folder / shard.file).exists():
    return None
  with np.load(path) as stored:
    said = json.loads(str(stored["said"]))
    return Written(**said, action=stored["action"], state=stored["state"])


def _state_written(folder: Path, shard: Shard, written: Written):
  said: Mapping[str, Any] = written._asdict()
  said = {k: v for k, v in said.items() if k not in ("action", "state")}
  unfinished = folder / f".{shard.file}.npz.{os.getpid()}.unfinished"
  path = folder / f"{shard.file}.npz"
  with storage.named_in_errors(path), unfinished.open("wb") as file:
    np.savez(
      file, said=json.dumps(said), action=written.action, state=written.state
    )
  os.replace(unfinished, path)

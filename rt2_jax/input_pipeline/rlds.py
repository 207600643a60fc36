"""Robot episodes in RLDS form: an index of steps, and random access to them.

The index holds where each image lies and everything small (actions,
instructions), 54 bytes per step; images stay in the shards, encoded, until a
step is drawn. So there is no shuffle buffer, and memory is flat.

Shapes: T steps of an episode, N steps in all, D action dimensions, F frames.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.batch import Step
from rt2_jax.input_pipeline import records


class Episode:
  """One RLDS episode; features are found by their name below `steps/`."""

  def __init__(self, record: records.Record):
    self.record = record
    self.length = len(record.numbers("steps/is_first"))

  def __getitem__(self, name: str) -> np.ndarray:
    """A numeric feature, [T, …] flattened to [T, n]."""
    values = self.record.numbers(f"steps/{name}")
    if values.size % self.length:
      raise ValueError(
        f"{self.record.path}: got {values.size} numbers in {name!r}, expected "
        f"a multiple of the episode's {self.length} steps"
      )
    return values.reshape(self.length, -1)

  def texts(self, name: str) -> list[str]:
    return self.record.texts(f"steps/{name}")

  def image_spans(self, name: str) -> list[records.Span]:
    """(offset in the shard, length) of each step's encoded image."""
    spans = self.record.byte_spans(f"steps/{name}")
    if len(spans) != self.length:
      raise ValueError(
        f"{self.record.path}: got {len(spans)} images in {name!r}, expected "
        f"{self.length}, one for each step"
      )
    return spans


class Canonical(NamedTuple):
  """An episode's small features in this project's conventions.

  Attributes:
    instruction: T strings.
    action: float32[T, D] in physical units, in the order of an `ActionSpace`.
  """

  instruction: list[str]
  action: np.ndarray


@dataclasses.dataclass(frozen=True)
class StepIndex:
  """Where every step of a split lies, and its small features.

  Attributes:
    files: the shards.
    file: uint16[N], which shard holds the step's image.
    offset: uint64[N], where the image begins.
    length: uint32[N], bytes of the image.
    episode: uint32[N], numbered over all shards.
    text: uint32[N], which of `texts` is the instruction.
    texts: the different instructions.
    action: float32[N, D] in physical units.
  """

  files: tuple[pathlib.Path, ...]
  file: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  episode: np.ndarray
  text: np.ndarray
  texts: tuple[str, ...]
  action: np.ndarray

  def __len__(self) -> int:
    return len(self.offset)


def build_index(
  files: Sequence[pathlib.Path],
  camera: str,
  standardize: Callable[[Episode], Canonical],
  space: ActionSpace,
) -> StepIndex:
  """Reads every record's small features once; decodes no image.

  Args:
    files: shards, from `records.find_shards`.
    camera: the image feature to use, e.g. "observation/image_0".
    standardize: the dataset's conventions, from `datasets.DATASETS`.
    space: what the D numbers of an action mean.

  Raises:
    ValueError: a shard is truncated or corrupt, lacks a feature, or holds an
      action that is not finite; the message names the file and the step.
  """
  columns = {name: [] for name in ("file", "offset", "length", "episode")}
  texts: dict[str, int] = {}
  text, action, num_episodes = [], [], 0
  for i, path in enumerate(files):
    for record in records.read_records(path):
      episode = Episode(record)
      canonical = standardize(episode)
      _check_action(canonical.action, space, path, num_episodes)
      for offset, length in episode.image_spans(camera):
        columns["offset"].append(offset)
        columns["length"].append(length)
      columns["file"] += [i] * episode.length
      columns["episode"] += [num_episodes] * episode.length
      text += [texts.setdefault(t, len(texts)) for t in canonical.instruction]
      action.append(canonical.action)
      num_episodes += 1
  return StepIndex(
    files=tuple(files),
    file=np.asarray(columns["file"], np.uint16),
    offset=np.asarray(columns["offset"], np.uint64),
    length=np.asarray(columns["length"], np.uint32),
    episode=np.asarray(columns["episode"], np.uint32),
    text=np.asarray(text, np.uint32),
    texts=tuple(texts),
    action=np.concatenate(action).astype(np.float32),
  )


def _check_action(
  action: np.ndarray, space: ActionSpace, path: pathlib.Path, episode: int
):
  assert action.shape[1:] == (len(space),), (action.shape, space.names)
  bad = np.argwhere(~np.isfinite(action))
  if bad.size:
    step, dimension = bad[0]
    raise ValueError(
      f"{path}: got {action[step, dimension]} for action dimension "
      f"{space.names[dimension]!r} in step {step} of episode {episode}, "
      "expected a finite number; repair or drop this episode"
    )


class StepSource:
  """Random access to the steps of an index: one `pread` per image."""

  def __init__(self, index: StepIndex, num_frames: int = 1):
    """`num_frames` F: the step's own image and the F-1 before it."""
    self.index = index
    self.num_frames = num_frames
    self._descriptors = [os.open(path, os.O_RDONLY) for path in index.files]

  def __len__(self) -> int:
    return len(self.index)

  def read(self, i: int) -> Step:
    """Step `i`, 0 <= i < N, with its images still encoded."""
    index = self.index
    return Step(
      images=tuple(self._image(j) for j in self._frames(i)),
      instruction=index.texts[index.text[i]],
      action=index.action[i],
    )

  def location(self, i: int) -> str:
    """Where step `i`'s image lies, for error messages."""
    index = self.index
    return f"{index.files[index.file[i]]}, byte {index.offset[i]}"

  def _frames(self, i: int) -> list[int]:
    """The F steps shown at step `i`, oldest first.

    Before an episode's start its first image is repeated.
    """
    episode = self.index.episode
    frames = [i]
    while len(frames) < self.num_frames:
      before = frames[-1] - 1
      inside = before >= 0 and episode[before] == episode[i]
      frames.append(before if inside else frames[-1])
    return frames[::-1]

  def _image(self, i: int) -> bytes:
    index = self.index
    length = int(index.length[i])
    image = os.pread(
      self._descriptors[index.file[i]], length, int(index.offset[i])
    )
    if len(image) != length:
      raise ValueError(
        f"{self.location(i)}: got {len(image)} bytes of an image, expected "
        f"{length}; the shard changed while it was read, copy it again"
      )
    return image

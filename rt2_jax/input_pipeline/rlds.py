"""Robot episodes in RLDS form: an index of steps, and random access to them.

The index holds where each image lies and everything small (actions,
instructions), 54 bytes per step; images stay in the shards, encoded, until a
step is drawn. So there is no shuffle buffer, and memory is flat.

Shapes: T steps of an episode, N steps in all, D action dimensions, F frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import image_size, records
from rt2_jax.input_pipeline.index import damaged_in, from_column, to_column
from rt2_jax.input_pipeline.storage import Request, Storage


class Episode:
  """One RLDS episode; features are found by their name below `steps/`."""

  def __init__(self, record: records.Record):
    self.record = record
    self.length = len(record.numbers("steps/is_first"))

  def __getitem__(self, name: str) -> np.ndarray:
    """A numeric feature, [T, …] flattened to [T, n]."""
    values = self.record.numbers(f"steps/{name}")
    if values.size % self.length:
      raise UserError(
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
      raise UserError(
        f"{self.record.path}: got {len(spans)} images in {name!r}, expected "
        f"{self.length}, one for each step"
      )
    return spans

  def largest_image(self, name: str) -> tuple[int, int]:
    """(height, width) in pixels that hold every step's image."""
    return image_size.largest_size(self.record.byte_views(f"steps/{name}"))


class Canonical(NamedTuple):
  """An episode's small features in this project's conventions.

  A dataset may leave out steps at an episode's end: then T is smaller there.

  Attributes:
    instruction: T strings.
    action: float32[T, D] in physical units, in the order of an `ActionSpace`.
    plan: T strings that precede the actions, or none; see `Prompt.plan_ids`.
  """

  instruction: list[str]
  action: np.ndarray
  plan: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Filters:
  """Which episodes and steps an index keeps.

  Attributes:
    episodes: value that a feature of the episode must have, by its name, e.g.
      `{"aspects/success": True}`.
    drop_noops: leave out steps that neither move nor change anything else.
  """

  episodes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  drop_noops: bool = False

  def keep_episode(self, record: records.Record) -> bool:
    return all(
      _value(record, name) == value for name, value in self.episodes.items()
    )

  def keep_steps(self, action: np.ndarray, space: ActionSpace) -> np.ndarray:
    """bool[T]; an action is still when it moves less than 0.1 mm or mrad."""
    if not self.drop_noops:
      return np.ones(len(action), bool)
    moves = np.array([d.unit in ("m", "rad") for d in space.dimensions])
    still = (np.abs(action[:, moves]) < 1e-4).all(-1)
    before = np.concatenate([action[:1], action[:-1]])
    same = (action[:, ~moves] == before[:, ~moves]).all(-1)
    return ~(still & same)


def _value(record: records.Record, name: str) -> Any:
  """A feature of an episode: a number, or a text."""
  texts = record.texts(name)
  return texts[0] if texts else record.numbers(name)[0]


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
    plan: uint32[N], which of `plans` precedes the action; empty without plans.
    plans: the different plans.
    action: float32[N, D] in physical units.
    size: uint16[E, 2], height and width in pixels that hold every image of an
      episode.
    damaged: what was left out because it cannot be read, a line each.
  """

  files: tuple[str, ...]
  file: np.ndarray
  offset: np.ndarray
  length: np.ndarray
  episode: np.ndarray
  text: np.ndarray
  texts: tuple[str, ...]
  plan: np.ndarray
  plans: tuple[str, ...]
  action: np.ndarray
  size: np.ndarray
  damaged: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.offset)

  @property
  def nbytes(self) -> int:
    columns = (getattr(self, f.name) for f in dataclasses.fields(self))
    return sum(c.nbytes for c in columns if isinstance(c, np.ndarray))

  @classmethod
  def merge(
    cls, files: Sequence[str], shards: Sequence[Mapping[str, np.ndarray]]
  ) -> StepIndex:
    """One index from those that `index_episodes` made of each shard."""
    text, texts = _merge_texts(shards, "text")
    plan, plans = _merge_texts(shards, "plan")
    episode, first = [], 0
    for columns in shards:
      episode.append(columns["episode"] + np.uint32(first))
      first += int(columns["num_episodes"])
    sizes = [len(columns["offset"]) for columns in shards]
    return cls(
      files=tuple(files),
      file=np.repeat(np.arange(len(files), dtype=np.uint16), sizes),
      offset=np.concatenate([c["offset"] for c in shards]),
      length=np.concatenate([c["length"] for c in shards]),
      episode=np.concatenate(episode),
      text=text,
      texts=texts,
      plan=plan,
      plans=plans,
      action=np.concatenate([c["action"] for c in shards]),
      size=np.concatenate([c["size"] for c in shards]),
      damaged=tuple(damaged_in(shards)),
    )


def _merge_texts(
  shards: Sequence[Mapping[str, np.ndarray]], name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
  """A column of numbers, uint32[N], and the different texts that they mean."""
  texts: dict[str, int] = {}
  columns = []
  for shard in shards:
    own = from_column(shard[f"{name}s"])
    numbers = [texts.setdefault(t, len(texts)) for t in own]
    columns.append(np.asarray(numbers, np.uint32)[shard[name]])
  return np.concatenate(columns), tuple(texts)


def index_episodes(
  storage: Storage,
  path: str,
  camera: str,
  standardize: Callable[[Episode], Canonical],
  space: ActionSpace,
  filters: Filters,
) -> dict[str, np.ndarray]:
  """Reads every record's small features once; decodes no image.

  Args:
    storage: where the shard lies.
    path: a shard, from `records.find_shards`.
    camera: the image feature to use, e.g. "observation/image_0".
    standardize: the dataset's conventions, from `datasets.DATASETS`.
    space: what the D numbers of an action mean.
    filters: what to leave out.

  Returns:
    The columns of `StepIndex` for this shard, with episodes, texts and plans
    numbered from 0, and `num_episodes`. Damaged records are left out, and
    listed.

  Raises:
    UserError: an episode lacks a feature, or holds an action that is not
      finite; the message names the file and the step.
  """
  spans, episodes, text, plan, action, sizes = [], [], [], [], [], []
  texts: dict[str, int] = {}
  plans: dict[str, int] = {}
  damaged: list[str] = []
  for record in records.read_records(storage, path, damaged):
    if not filters.keep_episode(record):
      continue
    episode = Episode(record)
    canonical = standardize(episode)
    _check_action(canonical.action, space, path, len(episodes))
    kept = np.flatnonzero(filters.keep_steps(canonical.action, space))
    images = episode.image_spans(camera)
    spans += [images[t] for t in kept]
    text += _numbers(canonical.instruction, kept, texts)
    plan += _numbers(canonical.plan, kept, plans)
    action.append(canonical.action[kept])
    sizes.append(episode.largest_image(camera))
    episodes.append(len(kept))
  offset, length = np.asarray(spans, np.uint64).reshape(-1, 2).T
  empty = np.zeros((0, len(space)), np.float32)
  return {
    "offset": offset,
    "length": length.astype(np.uint32),
    "episode": np.repeat(np.arange(len(episodes), dtype=np.uint32), episodes),
    "text": np.asarray(text, np.uint32),
    "texts": to_column(texts),
    "plan": np.asarray(plan, np.uint32),
    "plans": to_column(plans),
    "action": np.concatenate([empty, *action]).astype(np.float32),
    "size": image_size.as_column(sizes),
    "num_episodes": np.asarray(len(episodes)),
    "damaged": to_column(damaged),
  }


def _numbers(
  texts: Sequence[str], kept: np.ndarray, known: dict[str, int]
) -> list[int]:
  """The kept texts' numbers among the known ones, which grow; none of none."""
  return [known.setdefault(texts[t], len(known)) for t in kept if texts]


def _check_action(
  action: np.ndarray, space: ActionSpace, path: str, episode: int
):
  assert action.shape[1:] == (len(space),), (action.shape, space.names)
  bad = np.argwhere(~np.isfinite(action))
  if bad.size:
    step, dimension = bad[0]
    raise UserError(
      f"{path}: got {action[step, dimension]} for action dimension "
      f"{space.names[dimension]!r} in step {step} of episode {episode}, "
      "expected a finite number; repair or drop this episode"
    )


class StepSource:
  """Random access to the steps of an index; images stay encoded."""

  def __init__(self, storage: Storage, index: StepIndex, num_frames: int = 1):
    """`num_frames` F: the step's own image and the F-1 before it."""
    self.storage = storage
    self.index = index
    self.num_frames = num_frames

  def __len__(self) -> int:
    return len(self.index)

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

    Before an episode's start its first image is repeated.
    """
    episode = self.index.episode
    frames = [i]
    while len(frames) < self.num_frames:
      before = frames[-1] - 1
      inside = before >= 0 and episode[before] == episode[i]
      frames.append(before if inside else frames[-1])
    return [self._image(frame) for frame in reversed(frames)]

  def instruction(self, i: int) -> str:
    return self.index.texts[self.index.text[i]]

  def plan(self, i: int) -> str:
    """What precedes step `i`'s action; "" in a dataset without plans."""
    index = self.index
    return index.plans[index.plan[i]] if index.plans else ""

  def location(self, i: int) -> str:
    """Where step `i`'s image lies, for error messages."""
    image = self._image(i)
    return f"{image.path}, byte {image.offset}"

  def _image(self, i: int) -> Request:
    index = self.index
    path = index.files[index.file[i]]
    return Request(path, int(index.offset[i]), int(index.length[i]))

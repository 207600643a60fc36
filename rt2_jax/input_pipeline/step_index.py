"""The index of a split's robot steps, and random access to them.

The index holds where each image lies and everything small (actions,
instructions), 60 bytes per step; images stay in the shards, encoded, until a
step is drawn. So there is no shuffle buffer, and memory is flat.

Shapes: N steps in all, M frames of their episodes, C cameras, E episodes, D
action dimensions, S numbers of a state, H actions of a chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.byte_ranges import Request, Storage
from rt2_jax.input_pipeline.episodes import WrongFunctionError
from rt2_jax.input_pipeline.growing_columns import GrowingColumns
from rt2_jax.input_pipeline.index import Indexed, read_all
from rt2_jax.input_pipeline.kept_index import Columns, fingerprint, from_column
from rt2_jax.input_pipeline.unusable import Unusable

# The columns of a shard that have a row per frame, per episode and per step.
_OF_IMAGES = ("offset", "length", "checksum")
_OF_EPISODES = ("record", "start", "size")
_OF_STEPS = ("frame", "episode", "text", "plan", "action", "state")


@dataclasses.dataclass(frozen=True)
class StepIndex:
  """Locations of all steps of a split, and their small features.

  Images are listed for all steps of an episode, also for those that a filter
  leaves out: frames before a step are what the camera saw before it.

  Attributes:
    files: the shards.
    offset: uint64[M, C], where each camera's image begins.
    length: uint32[M, C], bytes of an image.
    checksum: uint32[M, C], crc32c of an image.
    file: uint32[E], which shard holds the episode.
    start: uint32[E], which frame is the episode's first.
    size: uint16[E, 2], height and width in pixels that hold the episode's
      images.
    frame: uint32[N], which frame a step shows.
    episode: uint32[N], numbered over all shards.
    text: uint32[N], which of `texts` is the instruction.
    texts: the different instructions.
    plan: uint32[N], which of `plans` precedes the action; empty without plans.
    plans: the different plans.
    action: float32[N, D] in physical units.
    state: float32[N, S] in physical units; S is 0 where none is read.
    damaged: what was left out because it cannot be used.
  """

  files: tuple[str, ...]
  offset: np.ndarray
  length: np.ndarray
  checksum: np.ndarray
  file: np.ndarray
  start: np.ndarray
  size: np.ndarray
  frame: np.ndarray
  episode: np.ndarray
  text: np.ndarray
  texts: tuple[str, ...]
  plan: np.ndarray
  plans: tuple[str, ...]
  action: np.ndarray
  state: np.ndarray
  damaged: tuple[Unusable, ...]

  def __len__(self) -> int:
    return len(self.frame)

  @property
  def nbytes(self) -> int:
    columns = (getattr(self, f.name) for f in dataclasses.fields(self))
    return sum(c.nbytes for c in columns if isinstance(c, np.ndarray))

  @classmethod
  def merge(
    cls, shards: Iterable[Indexed], damaged: Sequence[Unusable] = ()
  ) -> StepIndex:
    """Joins the indexes that `index_episodes` made of each shard."""
    files: list[str] = []
    texts: dict[str, int] = {}
    plans: dict[str, int] = {}
    joined = GrowingColumns()
    for number, (shard, whole) in enumerate(read_all(shards)):
      columns = _cut(shard, whole)
      first_image = joined.length("offset")
      first_episode = joined.length("start")
      episodes = len(columns["start"])
      joined.add(
        {name: columns[name] for name in (*_OF_IMAGES, "size", "action")}
      )
      joined.add(
        {
          "state": columns["state"],
          "file": np.full(episodes, number, np.uint32),
          "start": _renumbered(columns["start"], first_image),
          "frame": _renumbered(columns["frame"], first_image),
          "episode": _renumbered(columns["episode"], first_episode),
          "text": _numbered(texts, columns["texts"], columns["text"]),
          "plan": _numbered(plans, columns["plans"], columns["plan"]),
        }
      )
      files.append(shard.path)
    check_plans(joined.length("plan"), joined.length("frame"))
    texts, plans = tuple(texts), tuple(plans)
    return cls(
      tuple(files),
      **joined.finish(),
      texts=texts,
      plans=plans,
      damaged=tuple(damaged),
    )

  def only(self, kept: np.ndarray) -> StepIndex:
    """Selects the steps where bool[N] is true, in their order."""
    names = ("frame", "episode", "text", "action", "state")
    names += ("plan",) * bool(self.plans)
    columns = {name: getattr(self, name)[kept] for name in names}
    return dataclasses.replace(self, **columns)


def _cut(shard: Indexed, columns: Columns) -> Columns:
  """Cuts out the columns of the records in use, numbered from 0 again."""
  record = columns["record"]
  if not shard.first and (not len(record) or record[-1] < shard.stop):
    return columns  # all of them
  episodes = slice(*np.searchsorted(record, [shard.first, shard.stop]))
  starts = np.append(columns["start"], len(columns["offset"]))
  images = slice(int(starts[episodes.start]), int(starts[episodes.stop]))
  steps = slice(
    *np.searchsorted(columns["episode"], [episodes.start, episodes.stop])
  )
  cut = {name: columns[name][images] for name in _OF_IMAGES}
  cut |= {name: columns[name][episodes] for name in _OF_EPISODES}
  cut |= {name: columns[name][steps] for name in _OF_STEPS}
  cut["start"] = cut["start"] - np.uint32(images.start)
  cut["frame"] = cut["frame"] - np.uint32(images.start)
  cut["episode"] = cut["episode"] - np.uint32(episodes.start)
  return cut | {name: columns[name] for name in ("texts", "plans")}


def _renumbered(numbers: np.ndarray, first: int) -> np.ndarray:
  """Adds what precedes them in other shards to the numbers of elements."""
  is_large = len(numbers) and int(numbers[-1]) + first >= 2**32
  return numbers.astype(np.uint64 if is_large else np.uint32) + first


def _numbered(
  texts: dict[str, int], column: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
  """Numbers a shard's texts among those of all shards, uint32[n]."""
  own = [texts.setdefault(t, len(texts)) for t in from_column(column)]
  return np.asarray(own, np.uint32)[numbers]


def check_plans(count: int, steps: int):
  """Raises UserError unless all steps have plans, or none has."""
  if count not in (0, steps):
    raise WrongFunctionError(
      f"got plans for {count} of {steps} steps, expected one for each step or "
      "none at all; correct the dataset's function"
    )


class StepSource:
  """Random access to the steps of an index; images stay encoded."""

  def __init__(
    self,
    storage: Storage,
    index: StepIndex,
    space: ActionSpace,
    history: int = 1,
  ):
    """Takes an index.

    Args:
      storage: where its shards lie.
      index: of all steps.
      space: what the D numbers of an action mean.
      history: frames of each camera, the step's own included.
    """
    self.storage = storage
    self.index = index
    self.space = space
    self.history = history

  def __len__(self) -> int:
    return len(self.index)

  def only(self, kept: np.ndarray) -> StepSource:
    """Selects the steps where bool[N] is true, in their order."""
    index = self.index.only(kept)
    return StepSource(self.storage, index, self.space, self.history)

  @property
  def largest_image(self) -> tuple[int, int]:
    """(height, width) in pixels that hold every image of the source.

    Read from the images' headers when they were indexed. An image without a
    readable header counts for nothing.
    """
    height, width = self.index.size.max(0, initial=0)
    return int(height), int(width)

  def requests(self, numbers: Sequence[int]) -> list[list[Request]]:
    """Lists the images of each step: camera by camera, each oldest first.

    They are the camera's own last images, also where a filter leaves out the
    steps before. Before an episode's start its first image is repeated.
    """
    index, steps = self.index, np.asarray(numbers, np.int64)
    episode = index.episode[steps]
    frames = index.frame[steps].astype(np.int64)
    places = [index.offset, index.length, index.checksum]
    if self.history > 1:
      frames = frames[:, None] + np.arange(1 - self.history, 1)
      frames = np.maximum(frames, index.start[episode][:, None])
      places = [
        column[frames].swapaxes(1, 2).reshape(len(steps), -1).tolist()
        for column in places
      ]
    else:
      places = [column[frames].tolist() for column in places]
    files = [index.files[f] for f in index.file[episode].tolist()]
    return [
      [Request(file, *place) for place in zip(*row, strict=True)]
      for file, *row in zip(files, *places, strict=True)
    ]

  def following(
    self, numbers: Sequence[int], horizon: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds each step and the H - 1 that follow it in its episode.

    Steps that the filters left out do not count.

    Returns:
      int64[n, H] steps, the episode's last one again after its end; and
      bool[n, H], whether the end is past.
    """
    first = np.asarray(numbers, np.int64)[:, None]
    if horizon == 1:
      return first, np.zeros(first.shape, bool)
    ahead = np.arange(horizon)
    steps = np.minimum(first + ahead, len(self) - 1)
    episode = self.index.episode
    is_there = (episode[steps] == episode[first]) & (steps == first + ahead)
    last = first[:, 0] + is_there.sum(1) - 1
    return np.minimum(steps, last[:, None]), ~is_there

  def chunks(self, numbers: Sequence[int], horizon: int) -> np.ndarray:
    """Gathers the actions of steps and of the next H - 1 of their episodes.

    After the episode's end the robot has terminated, see
    `ActionSpace.after_end`.

    Returns:
      float32[n, H, D] in physical units.
    """
    steps, is_past = self.following(numbers, horizon)
    chunks = self.index.action[steps]
    chunks[is_past] = self.space.after_end(chunks[is_past])
    return chunks

  def instruction(self, i: int) -> str:
    return self.index.texts[self.index.text[i]]

  def plan(self, i: int) -> str:
    """Finds step `i`'s plan; "" in a dataset without plans."""
    index = self.index
    return index.plans[index.plan[i]] if index.plans else ""

  def location(self, i: int) -> str:
    """Locates step `i`'s image, for error messages."""
    image = self.requests([i])[0][self.history - 1]
    return f"{image.path}, byte {image.offset}"

  def release_numbers(self):
    """Frees actions and states, half of an index: training holds their bins."""
    _ = self.fingerprint  # taken of them
    action, state = self.index.action[:0], self.index.state[:0]
    self.index = dataclasses.replace(
      self.index, action=action.copy(), state=state.copy()
    )

  @functools.cached_property
  def fingerprint(self) -> str:
    """Names the examples and their order, wherever the files lie."""
    i = self.index
    images = (i.offset, i.length, i.checksum, i.file, i.start)
    steps = (i.frame, i.episode, i.text, i.plan, i.action, i.state)
    return fingerprint((*images, *steps, i.texts, i.plans))

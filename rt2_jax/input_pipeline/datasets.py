"""Robot datasets: what each one's fields mean, in one short function each.

Conventions of a canonical action (reference: RT-2 paper, section 3.2, and
Octo's and OpenVLA's published mappings): translations in metres, rotations in
radians, gripper absolute with 1 = open, terminate 1.0 on the step that ends an
episode. To add a dataset, write its function and its row in `DATASETS`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rt2_jax.actions import LANGUAGE_TABLE, RT2, TABLETOP, ActionSpace
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.input_pipeline import index, records, rlds
from rt2_jax.input_pipeline.rlds import Canonical, Episode
from rt2_jax.input_pipeline.storage import Storage, open_storage
from rt2_jax.tokenizer import place_words

_PLACES = 16  # of a coordinate in plans, as data/make_web_pictures.py points


def fractal20220817_data(episode: Episode) -> Canonical:
  """RT-1's kitchen data (Google robot, 3 Hz); base motion is left out."""
  action = [
    episode["action/terminate_episode"][:, :1],  # one-hot, 0 = terminate
    episode["action/world_vector"],
    episode["action/rotation_delta"],
    absolute_gripper(episode["action/gripper_closedness_action"]),
  ]
  return Canonical(
    episode.texts("observation/natural_language_instruction"),
    np.concatenate(action, -1, dtype=np.float32),
  )


def bridge_dataset(episode: Episode) -> Canonical:
  """BridgeData V2 as Berkeley released it (WidowX, 5 Hz), commanded actions.

  It has no terminate field; `is_last` marks the end, so that an episode that
  was cut short does not teach the robot to stop.
  """
  action = episode["action"]
  columns = [
    episode["is_last"],
    action[:, :6],
    binary_gripper(action[:, 6:]),
  ]
  return Canonical(
    episode.texts("language_instruction"),
    np.concatenate(columns, -1, dtype=np.float32),
  )


def bridge_dataset_relabelled(episode: Episode) -> Canonical:
  """The same, acting towards the state that was reached at the next step.

  The motion is what the arm did rather than what it was told to do, as Octo
  and OpenVLA train on Bridge. The last step has no next one and is dropped.
  """
  commanded = bridge_dataset(episode)
  reached = np.diff(episode["observation/state"][:, :6], axis=0)
  reached[:, 3:] = (reached[:, 3:] + np.pi) % (2 * np.pi) - np.pi
  terminate, gripper = commanded.action[1:, :1], commanded.action[:-1, 7:]
  return Canonical(
    commanded.instruction[:-1],
    np.concatenate([terminate, reached, gripper], -1, dtype=np.float32),
  )


def bridge(episode: Episode) -> Canonical:
  """BridgeData as the Open X-Embodiment copy in TFDS has it."""
  action = [
    episode["action/terminate_episode"],
    episode["action/world_vector"],
    episode["action/rotation_delta"],
    episode["action/open_gripper"],
  ]
  return Canonical(
    episode.texts("observation/natural_language_instruction"),
    np.concatenate(action, -1, dtype=np.float32),
  )


def language_table(episode: Episode) -> Canonical:
  """Language-Table, real and simulated (xArm, 10 Hz): where to push, in m.

  The instruction comes as UTF-8 codes, padded with zeros.
  """
  codes = episode["observation/instruction"].astype(np.uint8)
  texts = [bytes(row).rstrip(b"\0").decode() for row in codes]
  return Canonical(texts, episode["action"])


def libero(episode: Episode) -> Canonical:
  """LIBERO without no-ops, as OpenVLA regenerated it (Panda, 20 Hz).

  Actions are in units of the controller's largest step, 5 cm and 0.5 rad;
  its gripper closes at +1.
  """
  action = episode["action"]
  columns = [
    episode["is_last"],
    0.05 * action[:, :3],
    0.5 * action[:, 3:6],
    (1.0 - np.clip(action[:, 6:], -1.0, 1.0)) / 2.0,
  ]
  return Canonical(
    episode.texts("language_instruction"),
    np.concatenate(columns, -1, dtype=np.float32),
  )


def tabletop(episode: Episode) -> Canonical:
  """The simulated tabletop (5 Hz), as data/make_tabletop.py records it."""
  return Canonical(episode.texts("language_instruction"), episode["action"])


def tabletop_with_plan(episode: Episode) -> Canonical:
  """The same; before it acts the robot names what it acts on, and where it is.

  The task's thing, then where it belongs, if anywhere, each with the middle of
  its box at that step: `apple <loc0416><loc0608>, heart <loc0096><loc0480>`.
  """
  things = []
  for role in ("target", "reference"):
    (name,) = episode.record.texts(f"episode_metadata/{role}")
    boxes = episode[f"{role}_box"]
    if name:
      things.append([f"{name} {place_words(box, _PLACES)}" for box in boxes])
  plan = [", ".join(step) for step in zip(*things, strict=True)]
  return tabletop(episode)._replace(plan=plan)


def absolute_gripper(closedness: np.ndarray) -> np.ndarray:
  """Relative commands (+1 close, -1 open, 0 hold) to absolute 1 = open.

  The last command holds. Before the first one the gripper is in the opposite
  state; without any command it is open. float[T, 1] -> float32[T, 1].
  """
  command = np.where(closedness > 0.1, 0.0, np.nan)
  command = np.where(closedness < -0.1, 1.0, command)[:, 0]
  given = np.flatnonzero(~np.isnan(command))
  start = 1.0 - command[given[0]] if given.size else 1.0
  with_start = np.concatenate([[start], command])
  last = np.maximum.accumulate(
    np.where(np.isnan(with_start), 0, np.arange(len(with_start)))
  )
  return with_start[last][1:, None].astype(np.float32)


def binary_gripper(opening: np.ndarray) -> np.ndarray:
  """0 or 1 (open); a value in between takes the next settled one.

  While the gripper moves it is on its way to what comes next; at the end of
  an episode the nearer state is taken. float[T, 1] -> float32[T, 1].
  """
  settled = (opening > 0.95) | (opening < 0.05)
  state = (opening > 0.5).astype(np.float32)[:, 0]
  position = np.arange(len(state))
  following = np.where(settled[:, 0], position, len(state))
  following = np.minimum.accumulate(following[::-1])[::-1]
  return state[np.where(following < len(state), following, position)][:, None]


@dataclasses.dataclass(frozen=True)
class RobotDataset:
  """What a dataset's records mean.

  Attributes:
    space: what the numbers of `standardize`'s actions are.
    camera: the image feature that the robot acts on.
    standardize: an episode's small features in canonical form.
  """

  space: ActionSpace
  camera: str
  standardize: Callable[[Episode], Canonical]


DATASETS: Mapping[str, RobotDataset] = {
  "fractal20220817_data": RobotDataset(
    RT2, "observation/image", fractal20220817_data
  ),
  "bridge_dataset": RobotDataset(RT2, "observation/image_0", bridge_dataset),
  "bridge_dataset_relabelled": RobotDataset(
    RT2, "observation/image_0", bridge_dataset_relabelled
  ),
  "bridge": RobotDataset(RT2, "observation/image", bridge),
  "language_table": RobotDataset(
    LANGUAGE_TABLE, "observation/rgb", language_table
  ),
  "libero": RobotDataset(RT2, "observation/image", libero),
  "tabletop": RobotDataset(TABLETOP, "observation/image", tabletop),
  "tabletop_with_plan": RobotDataset(
    TABLETOP, "observation/image", tabletop_with_plan
  ),
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One robot source of a mixture, as a config names it.

  Attributes:
    dataset: a key of `DATASETS`: how to read the records.
    path: TFDS version folder, local or e.g. `gs://…`.
    split: split to train on, or a part of its shards such as "train[:99%]".
    eval_split: split to evaluate on.
    weight: share of the mixture, relative to the other robot sources.
    bounds: [low, high] in physical units for dimensions whose bins should
      span another range than the action space's own; or "q01_q99", those that
      `statistics` suggests.
    statistics: file that `data/compute_stats.py` wrote for this dataset, which
      checkpoints keep; "" names none.
    filters: episodes and steps to leave out, see `rlds.Filters`.
  """

  dataset: str
  path: str
  split: str = "train"
  eval_split: str = "train"
  weight: float = 1.0
  bounds: Mapping[str, Sequence[float]] | str = dataclasses.field(
    default_factory=dict
  )
  statistics: str = ""
  filters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def space(self) -> ActionSpace:
    """The dataset's action space with this source's bounds.

    Raises:
      UserError: no such dataset, or bounds that do not fit it.
    """
    space = robot_dataset(self.dataset).space
    if not isinstance(self.bounds, str):
      return space.with_bounds(self.bounds)
    if self.bounds != "q01_q99":
      raise unknown_name("bounds", self.bounds, ["q01_q99"])
    if not self.statistics:
      raise UserError(
        f"got bounds 'q01_q99' for {self.dataset!r} without statistics, "
        "expected a file that data/compute_stats.py wrote; name it as this "
        "source's `statistics`"
      )
    return space.with_bounds(self.read_statistics()["bounds"])

  def read_statistics(self) -> dict[str, Any]:
    """What the file `statistics` holds; empty when none is named.

    Raises:
      UserError: no such file, or the figures of another dataset.
    """
    if not self.statistics:
      return {}
    try:
      figures = json.loads(pathlib.Path(self.statistics).read_text())
      found, _ = figures["dataset"], figures["bounds"]
    except (OSError, ValueError, LookupError, TypeError) as error:
      raise UserError(
        f"got statistics {self.statistics!r}, which cannot be read "
        f"({error!r}), expected a file that data/compute_stats.py wrote"
      ) from error
    if found != self.dataset:
      raise UserError(
        f"got statistics {self.statistics!r} of dataset {found!r}, expected "
        f"those of {self.dataset!r}; run data/compute_stats.py for it"
      )
    return figures


def robot_dataset(name: str) -> RobotDataset:
  """Looks up a dataset. Raises UserError naming the known ones."""
  if name not in DATASETS:
    raise unknown_name("dataset", name, DATASETS)
  return DATASETS[name]


def open_source(
  config: SourceConfig,
  split: str,
  num_frames: int = 1,
  index_folder: str | None = None,
  num_workers: int | None = None,
  max_skipped: int = 0,
) -> rlds.StepSource:
  """Indexes one split of a dataset, or loads its index.

  See `index.load_or_build` for the last three arguments.

  Raises:
    UserError: bad data, or nothing is left after the filters.
  """
  robot_dataset(config.dataset)
  storage = open_storage(config.path)
  files = records.find_shards(storage, config.path, split)
  arguments = (config.dataset, dict(config.filters))
  shards = index.load_or_build(
    files, index_shard, arguments, index_folder, num_workers, max_skipped
  )
  steps = rlds.StepIndex.merge(files, shards)
  if not len(steps):
    raise UserError(
      f"got no step in split {split!r} of {config.path} after the filters "
      f"{dict(config.filters)}; relax them"
    )
  return rlds.StepSource(storage, steps, num_frames)


def index_shard(
  storage: Storage, path: str, dataset: str, filters: Mapping[str, Any]
) -> index.Columns:
  """One shard's columns, see `rlds.index_episodes`."""
  known = robot_dataset(dataset)
  return rlds.index_episodes(
    storage,
    path,
    known.camera,
    known.standardize,
    known.space,
    rlds.Filters(**filters),
  )

"""Robot datasets: what each one's fields mean, in one short function each.

Conventions of a canonical action (reference: RT-2 paper, section 3.2, and
Octo's and OpenVLA's published mappings): translations in metres, rotations in
radians, gripper absolute with 1 = open, terminate 1.0 on the step that ends an
episode. To add a dataset, write its function and its row in `DATASETS`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rt2_jax.actions import RT2, ActionSpace
from rt2_jax.errors import unknown_name
from rt2_jax.input_pipeline import records, rlds
from rt2_jax.input_pipeline.rlds import Canonical, Episode


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
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """One source of a mixture, as a config names it.

  Attributes:
    dataset: a key of `DATASETS`: how to read the records.
    path: TFDS version folder.
    split: split to train on.
    eval_split: split to evaluate on.
    weight: share of the mixture, relative to the other sources.
    bounds: [low, high] in physical units for dimensions whose bins should
      span another range than the action space's own.
  """

  dataset: str
  path: str
  split: str = "train"
  eval_split: str = "train"
  weight: float = 1.0
  bounds: Mapping[str, Sequence[float]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def robot_dataset(self) -> RobotDataset:
    if self.dataset not in DATASETS:
      raise unknown_name("dataset", self.dataset, DATASETS)
    return DATASETS[self.dataset]

  @property
  def space(self) -> ActionSpace:
    """The dataset's action space with this source's bounds."""
    return self.robot_dataset.space.with_bounds(self.bounds)


def open_source(
  config: SourceConfig, split: str, num_frames: int = 1
) -> rlds.StepSource:
  """Indexes one split of a dataset; raises ValueError on bad data."""
  dataset = config.robot_dataset
  files = records.find_shards(pathlib.Path(config.path), split)
  index = rlds.build_index(
    files, dataset.camera, dataset.standardize, dataset.space
  )
  return rlds.StepSource(index, num_frames)

"""Robot datasets: what each one's fields mean, in one short function each.

Conventions of a canonical action (reference: RT-2 paper, section 3.2, and
Octo's and OpenVLA's published mappings): translations in metres, rotations in
radians, gripper absolute with 1 = open, terminate 1.0 on the step that ends an
episode. To add a dataset, write its function and its row in `DATASETS`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from rt2_jax.action_spaces import (
  LANGUAGE_TABLE,
  RT2,
  TABLETOP,
  TABLETOP_STATE,
)
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import rlds
from rt2_jax.input_pipeline.episodes import (
  Canonical,
  Episode,
)
from rt2_jax.input_pipeline.grippers import absolute_gripper, binary_gripper
from rt2_jax.input_pipeline.oxe import OXE_DATASETS
from rt2_jax.input_pipeline.robot_dataset import RobotDataset
from rt2_jax.observation import PRIMARY
from rt2_jax.tokenizer import place_words

_PLACES = 16  # of a coordinate in plans, as data/make_web_pictures.py points


def fractal20220817_data(episode: Episode) -> Canonical:
  """RT-1's kitchen data (Google robot, 3 Hz); base motion is left out."""
  action = [
    # One-hot, 0 = terminate.
    episode.numbers("action/terminate_episode", 3, (0, 1))[:, :1],
    episode.numbers("action/world_vector", 3),
    episode.numbers("action/rotation_delta", 3),
    absolute_gripper(
      episode.numbers("action/gripper_closedness_action", 1, (-1, 1))
    ),
  ]
  return Canonical(
    episode.texts("observation/natural_language_instruction"),
    np.concatenate(action, -1, dtype=np.float32),
  )


def bridge_dataset(episode: Episode) -> Canonical:
  """Reads BridgeData V2, Berkeley's release (WidowX, 5 Hz), as commanded.

  It has no terminate field; `is_last` marks the end, so that an episode that
  was cut short does not teach the robot to stop.
  """
  action = episode.numbers("action", 7)
  columns = [
    episode.numbers("is_last", 1, (0, 1)),
    action[:, :6],
    binary_gripper(episode.in_range("action", action[:, 6:], 0, 1)),
  ]
  return Canonical(
    episode.texts("language_instruction"),
    np.concatenate(columns, -1, dtype=np.float32),
  )


def bridge_dataset_relabelled(episode: Episode) -> Canonical:
  """Reads the same; actions lead to the state reached at the next step.

  The motion is what the arm did rather than what it was told to do, as Octo
  and OpenVLA train on Bridge. The last step has no next one and is dropped.
  """
  commanded = bridge_dataset(episode)
  state = episode.numbers("observation/state", 7)
  reached = np.diff(state[:, :6], axis=0)
  reached[:, 3:] = (reached[:, 3:] + np.pi) % (2 * np.pi) - np.pi
  terminate, gripper = commanded.action[1:, :1], commanded.action[:-1, 7:]
  return Canonical(
    commanded.instruction[:-1],
    np.concatenate([terminate, reached, gripper], -1, dtype=np.float32),
    steps=np.arange(episode.length - 1),
  )


def bridge(episode: Episode) -> Canonical:
  """Reads BridgeData in the Open X-Embodiment copy of TFDS."""
  action = [
    episode.numbers("action/terminate_episode", 1, (0, 1)),
    episode.numbers("action/world_vector", 3),
    episode.numbers("action/rotation_delta", 3),
    episode.numbers("action/open_gripper", 1, (0, 1)),
  ]
  return Canonical(
    episode.texts("observation/natural_language_instruction"),
    np.concatenate(action, -1, dtype=np.float32),
  )


def language_table(episode: Episode) -> Canonical:
  """Reads Language-Table, real and simulated (xArm, 10 Hz): pushes in m.

  The instruction comes as UTF-8 codes, padded with zeros.
  """
  name = "observation/instruction"
  codes = episode.in_range(name, episode[name], 0, 255).astype(np.uint8)
  try:
    texts = [bytes(row).rstrip(b"\0").decode() for row in codes]
  except UnicodeDecodeError as error:
    raise UserError(
      f"{episode.where}: got codes in {name!r} that are not UTF-8 ({error}); "
      "repair or drop this episode"
    ) from error
  return Canonical(texts, episode.numbers("action", 2))


def libero(episode: Episode) -> Canonical:
  """Reads LIBERO without no-ops, as OpenVLA regenerated it (Panda, 20 Hz).

  Actions are in units of the controller's largest step, 5 cm and 0.5 rad;
  its gripper closes at +1.
  """
  action = episode.numbers("action", 7, (-1, 1))
  columns = [
    episode.numbers("is_last", 1, (0, 1)),
    0.05 * action[:, :3],
    0.5 * action[:, 3:6],
    (1.0 - np.clip(action[:, 6:], -1.0, 1.0)) / 2.0,
  ]
  return Canonical(
    episode.texts("language_instruction"),
    np.concatenate(columns, -1, dtype=np.float32),
  )


def tabletop(episode: Episode) -> Canonical:
  """Reads the simulated tabletop (5 Hz) of data/make_tabletop.py."""
  action = episode.numbers("action", 8)
  episode.in_range("action", action[:, [0, 7]], 0, 1)  # terminate, gripper
  return Canonical(episode.texts("language_instruction"), action)


def tabletop_with_plan(episode: Episode) -> Canonical:
  """Reads the same, with a plan: the objects of the task and their places.

  The task's thing, then where it belongs, if anywhere, each with the middle of
  its box at that step: `apple <loc0416><loc0608>, heart <loc0096><loc0480>`.
  """
  things = []
  for role in ("target", "reference"):
    name = "".join(episode.record.texts(f"episode_metadata/{role}"))
    boxes = episode.numbers(f"{role}_box", 4, (0, 1))
    if name:
      things.append([f"{name} {place_words(box, _PLACES)}" for box in boxes])
  if not things:
    raise UserError(
      f"{episode.where}: got no name in 'episode_metadata/target', expected "
      "the thing that the robot acts on; record the episode again"
    )
  plan = [", ".join(step) for step in zip(*things, strict=True)]
  return tabletop(episode)._replace(plan=plan)


def _pose(episode: Episode) -> np.ndarray:
  """Reads Bridge's and the tabletop's state, [T, 7], gripper with 1 = open."""
  return episode.numbers("observation/state", 7)


def _pose_and_fingers(episode: Episode) -> np.ndarray:
  """LIBERO's state, [T, 8]: position, axis times angle, two fingers."""
  return episode.numbers("observation/state", 8)


def _pose_space(name: str, *gripper: Dimension) -> ActionSpace:
  """Makes a space of gripper poses, in bounds of a table-top arm's reach."""
  position = (Dimension(axis, "m", -1.5, 1.5) for axis in "xyz")
  angles = ("roll", "pitch", "yaw")
  rotation = (Dimension(a, "rad", -math.pi, math.pi) for a in angles)
  return ActionSpace(name, "robot base", (*position, *rotation, *gripper))


_BRIDGE_STATE = rlds.RobotState(
  _pose_space("bridge_state", Dimension("gripper", "open")), _pose
)
_TABLETOP_STATE = rlds.RobotState(TABLETOP_STATE, _pose)
_LIBERO_STATE = rlds.RobotState(
  _pose_space(
    "libero_state",
    Dimension("finger_1", "m", -0.05, 0.05),
    Dimension("finger_2", "m", -0.05, 0.05),
  ),
  _pose_and_fingers,
)


_IMAGE = {PRIMARY: "observation/image"}
_IMAGES = {
  PRIMARY: "observation/image_0",
  "secondary": "observation/image_1",
  "tertiary": "observation/image_2",
}
_BRIDGE = {"rate_hz": 5.0, "recorded_as": "bridge_dataset|bridge_orig"}
_TABLETOP = {"rate_hz": 5.0, "recorded_as": "tabletop"}
DATASETS: Mapping[str, RobotDataset] = {
  "fractal20220817_data": RobotDataset(
    RT2,
    _IMAGE,
    fractal20220817_data,
    rate_hz=3.0,
    recorded_as="fractal20220817_data",
  ),
  "bridge_dataset": RobotDataset(
    RT2, _IMAGES, bridge_dataset, _BRIDGE_STATE, **_BRIDGE
  ),
  "bridge_dataset_relabelled": RobotDataset(
    RT2, _IMAGES, bridge_dataset_relabelled, _BRIDGE_STATE, **_BRIDGE
  ),
  "bridge": RobotDataset(
    RT2, _IMAGE, bridge, rate_hz=5.0, recorded_as="bridge"
  ),
  "language_table": RobotDataset(
    LANGUAGE_TABLE,
    {PRIMARY: "observation/rgb"},
    language_table,
    rate_hz=10.0,
    recorded_as="language_table(_.*)?",
  ),
  "libero": RobotDataset(
    RT2,
    _IMAGE | {"wrist": "observation/wrist_image"},
    libero,
    _LIBERO_STATE,
    rate_hz=20.0,
    recorded_as="libero(_.*)?",
  ),
  "tabletop": RobotDataset(
    TABLETOP, _IMAGE, tabletop, _TABLETOP_STATE, **_TABLETOP
  ),
  "tabletop_with_plan": RobotDataset(
    TABLETOP, _IMAGE, tabletop_with_plan, _TABLETOP_STATE, **_TABLETOP
  ),
  **{
    name: dataclasses.replace(each, recorded_as=name)
    for name, each in OXE_DATASETS.items()
  },
}

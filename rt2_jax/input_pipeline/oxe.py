"""Robot datasets of the Open X-Embodiment collection, besides `datasets`' own.

Each function follows the features that TFDS's catalogue documents and, for the
gripper, the mappings that Octo and OpenVLA publish. Speeds stay speeds, and
numbers in the unit of a controller's largest step stay so: their bounds come
from `data/compute_stats.py`, with `bounds="q01_q99"`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rt2_jax.action_spaces import RT2, RT2_SPEEDS, RT2_STEPS
from rt2_jax.input_pipeline.episodes import Canonical, Episode
from rt2_jax.input_pipeline.grippers import absolute_gripper
from rt2_jax.input_pipeline.robot_dataset import RobotDataset
from rt2_jax.observation import PRIMARY

_TEXT = "observation/natural_language_instruction"
_CLOSEDNESS = "action/gripper_closedness_action"


def taco_play(episode: Episode) -> Canonical:
  """Reads TACO Play (Franka, 15 Hz), in steps of 2 cm and 0.05 rad."""
  action = episode.numbers("action/rel_actions_world", 7)
  scale = np.repeat([0.02, 0.05], 3)
  return _canonical(
    episode.texts(_TEXT),
    _terminate(episode),
    scale * action[:, :6],
    np.clip(action[:, 6:], 0.0, 1.0),
  )


def jaco_play(episode: Episode) -> Canonical:
  """Reads Jaco Play (Jaco 2, 10 Hz), which never turns its gripper."""
  moves = episode.numbers("action/world_vector", 3)
  return _canonical(
    episode.texts(_TEXT),
    episode.numbers("action/terminate_episode", 3, (0, 1))[:, :1],
    np.concatenate([moves, np.zeros_like(moves)], -1),
    absolute_gripper(episode.numbers(_CLOSEDNESS, 1)),
  )


def berkeley_cable_routing(episode: Episode) -> Canonical:
  """Reads cable routing (Franka, 10 Hz): speeds of a hand that holds on."""
  closed = np.zeros((episode.length, 1))
  return _rtx(episode, closed)


def roboturk(episode: Episode) -> Canonical:
  """Reads RoboTurk (Sawyer, 10 Hz)."""
  return _rtx(episode, _opening(episode.numbers(_CLOSEDNESS, 1)))


def nyu_door_opening(episode: Episode) -> Canonical:
  """Reads NYU's door opening (a hand-held stick), as speeds."""
  return _rtx(episode, absolute_gripper(episode.numbers(_CLOSEDNESS, 1)))


def viola(episode: Episode) -> Canonical:
  """Reads VIOLA (Franka, 20 Hz), in the controller's steps."""
  return _rtx(episode, _opening(episode.numbers(_CLOSEDNESS, 1)))


def berkeley_autolab_ur5(episode: Episode) -> Canonical:
  """Reads AUTOLab's UR5 (5 Hz)."""
  return _rtx(episode, absolute_gripper(episode.numbers(_CLOSEDNESS, 1)))


def toto(episode: Episode) -> Canonical:
  """Reads TOTO (Franka, 30 Hz)."""
  return _rtx(episode, episode.numbers("action/open_gripper", 1, (0, 1)))


def bc_z(episode: Episode) -> Canonical:
  """Reads BC-Z (Google robot, 10 Hz): the first of its next ten actions.

  Its rotations are changes of an axis times an angle.
  """
  moves = episode.numbers("action/future/xyz_residual", 30)
  turns = episode.numbers("action/future/axis_angle_residual", 30)
  closed = episode.numbers("action/future/target_close", 10, (0, 1))
  return _canonical(
    episode.texts(_TEXT),
    episode.numbers("is_last", 1, (0, 1)),
    np.concatenate([moves[:, :3], turns[:, :3]], -1),
    1.0 - closed[:, :1],
  )


def stanford_hydra(episode: Episode) -> Canonical:
  """Reads HYDRA (Franka, 10 Hz)."""
  return _seven(episode)


def austin(episode: Episode) -> Canonical:
  """Reads BUDS, SAILOR, SIRIUS and MUTEX (Franka, 20 Hz), in steps."""
  return _seven(episode)


def _seven(episode: Episode) -> Canonical:
  """Reads six numbers of motion and one that is 1 for a closed gripper."""
  action = episode.numbers("action", 7)
  return _canonical(
    episode.texts("language_instruction"),
    episode.numbers("is_last", 1, (0, 1)),
    action[:, :6],
    _opening(action[:, 6:]),
  )


def _rtx(episode: Episode, gripper: np.ndarray) -> Canonical:
  """Reads the motion that most datasets of RT-X name alike."""
  moves = episode.numbers("action/world_vector", 3)
  turns = episode.numbers("action/rotation_delta", 3)
  return _canonical(
    episode.texts(_TEXT),
    _terminate(episode),
    np.concatenate([moves, turns], -1),
    gripper,
  )


def _terminate(episode: Episode) -> np.ndarray:
  return np.round(episode.numbers("action/terminate_episode", 1, (0, 1)))


def _opening(closedness: np.ndarray) -> np.ndarray:
  """Converts 1 = closed, and anything up to 0 = open, to 1 = open."""
  return 1.0 - np.clip(closedness, 0.0, 1.0)


def _canonical(
  texts: list[str],
  terminate: np.ndarray,
  motion: np.ndarray,
  gripper: np.ndarray,
) -> Canonical:
  columns = [terminate, motion, gripper]
  return Canonical(texts, np.concatenate(columns, -1, dtype=np.float32))


def _cameras(primary: str, **others: str) -> dict[str, str]:
  names = {PRIMARY: primary, **others}
  return {name: f"observation/{feature}" for name, feature in names.items()}


_WRIST = _cameras("image", wrist="wrist_image")
_EXTERNAL = "_dataset_converted_externally_to_rlds"
OXE_DATASETS: Mapping[str, RobotDataset] = {
  "taco_play": RobotDataset(
    RT2, _cameras("rgb_static", wrist="rgb_gripper"), taco_play, rate_hz=15.0
  ),
  "jaco_play": RobotDataset(
    RT2, _cameras("image", wrist="image_wrist"), jaco_play, rate_hz=10.0
  ),
  "berkeley_cable_routing": RobotDataset(
    RT2_SPEEDS,
    _cameras("image", secondary="top_image", wrist="wrist45_image"),
    berkeley_cable_routing,
    rate_hz=10.0,
  ),
  "roboturk": RobotDataset(RT2, _cameras("front_rgb"), roboturk, rate_hz=10.0),
  "nyu_door_opening_surprising_effectiveness": RobotDataset(
    RT2_SPEEDS, _cameras("image"), nyu_door_opening
  ),
  "viola": RobotDataset(
    RT2_STEPS,
    _cameras("agentview_rgb", wrist="eye_in_hand_rgb"),
    viola,
    rate_hz=20.0,
  ),
  "berkeley_autolab_ur5": RobotDataset(
    RT2,
    _cameras("image", wrist="hand_image"),
    berkeley_autolab_ur5,
    rate_hz=5.0,
  ),
  "toto": RobotDataset(RT2, _cameras("image"), toto, rate_hz=30.0),
  "bc_z": RobotDataset(RT2, _cameras("image"), bc_z, rate_hz=10.0),
  f"stanford_hydra{_EXTERNAL}": RobotDataset(
    RT2, _WRIST, stanford_hydra, rate_hz=10.0
  ),
  **{
    f"austin_{name}{_EXTERNAL}": RobotDataset(
      RT2_STEPS, _WRIST, austin, rate_hz=20.0
    )
    for name in ("buds", "sailor", "sirius")
  },
  "utaustin_mutex": RobotDataset(RT2_STEPS, _WRIST, austin, rate_hz=20.0),
}

"""Writes made-up episodes in the format of RT-1's public dataset.

  python -m data.make_rt1_episodes --output_dir=DIR --train_episodes=80

writes `DIR/fractal20220817_data/0.1.0/` with the splits `train` and `val`,
through TFDS's own writer and with the exact features of that dataset. Tests and
benchmarks read it in place of 100 GB of real data.

An episode is one smooth random texture, over which the camera moves with the
arm: a JPEG with the default noise is as large as one of RT-1's. Actions lead
from one random pose to another, close the gripper half-way and terminate. The
images say nothing about the actions.

Every episode is a pure function of (seed, split, number). Running the program
again with the same settings changes nothing. It needs no network.
"""

import os
from collections.abc import Iterator
from typing import Any

# TensorFlow reads this when it is imported, and is quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from PIL import Image

from data.tfds_writer import (
  SPLITS,
  EpisodesBuilder,
  check_settings,
  write_quietly,
)
from launch import program
from rt2_jax import local_copies, storage

WRITER_VERSION = 1  # raise it whenever the same seed would give other episodes
HEIGHT, WIDTH = 256, 320
MARGIN = 64  # pixels that the camera moves by at most
GRAIN = 32  # pixels between the random colours that a texture runs through
NOISE = 4.0  # grey levels
# Corners of the workspace: x y z (m) and yaw (rad).
LOW = np.array([0.46, -0.20, 0.0, -1.0])
HIGH = np.array([0.76, 0.20, 0.30, 1.0])
INSTRUCTIONS = (
  "pick {} can",
  "move {} can near blue chip bag",
  "place {} can upright",
)
COLOURS = ("red", "green", "orange", "white")

ATTRIBUTES = (
  "collection_mode",
  "data_type",
  "env",
  "location",
  "objects_family",
  "task_family",
)
ASPECTS = (
  "already_success",
  "feasible",
  "has_aspects",
  "success",
  "undesirable",
)


def tensor(*shape: int, dtype: Any = np.float32) -> tfds.features.Tensor:
  """Describes an array of that shape as a feature."""
  return tfds.features.Tensor(shape=shape, dtype=dtype)


ACTION_FEATURES = {
  "base_displacement_vector": tensor(2),
  "base_displacement_vertical_rotation": tensor(1),
  "gripper_closedness_action": tensor(1),
  "rotation_delta": tensor(3),
  "terminate_episode": tensor(3, dtype=np.int32),
  "world_vector": tensor(3),
}
OBSERVATION_FEATURES = {
  "base_pose_tool_reached": tensor(7),
  "gripper_closed": tensor(1),
  "gripper_closedness_commanded": tensor(1),
  "height_to_bottom": tensor(1),
  "image": tfds.features.Image(
    shape=(256, 320, 3), dtype=np.uint8, encoding_format="jpeg"
  ),
  "natural_language_embedding": tensor(512),
  "natural_language_instruction": tfds.features.Text(),
  "orientation_box": tensor(2, 3),
  "orientation_start": tensor(4),
  "robot_orientation_positions_box": tensor(3, 3),
  "rotation_delta_to_go": tensor(3),
  "src_rotation": tensor(4),
  "vector_to_go": tensor(3),
  "workspace_bounds": tensor(3, 3),
}
FEATURES = tfds.features.FeaturesDict(
  {
    "aspects": dict.fromkeys(ASPECTS, np.bool_),
    "attributes": dict.fromkeys(ATTRIBUTES, np.int64)
    | {f"{name}_name": tfds.features.Text() for name in ATTRIBUTES},
    "steps": tfds.features.Dataset(
      {
        "action": ACTION_FEATURES,
        "is_first": np.bool_,
        "is_last": np.bool_,
        "is_terminal": np.bool_,
        "observation": OBSERVATION_FEATURES,
        "reward": tfds.features.Scalar(dtype=np.float32),
      }
    ),
  }
)
EPISODE_FIELDS = {
  "aspects": {name: name in ("feasible", "success") for name in ASPECTS},
  "attributes": dict.fromkeys(ATTRIBUTES, 0)
  | {f"{name}_name": "made up" for name in ATTRIBUTES},
}


def episode(
  rng: np.random.Generator, num_steps: int, noise: float = NOISE
) -> dict[str, Any]:
  """Makes up one episode as RT-1 records it.

  The image of a step shows what is seen before its action. The last action
  terminates the episode and moves nothing.

  Args:
    rng: gives the episode.
    num_steps: T, at least 2.
    noise: standard deviation of the camera's noise, in grey levels.
  """
  start, end = rng.uniform(LOW, HIGH, (2, len(LOW)))
  time = np.linspace(0.0, 1.0, num_steps)[:, None]
  pose = start + (end - start) * time**2 * (3.0 - 2.0 * time)
  motion = np.diff(pose, axis=0, append=pose[-1:])
  texture = smooth_texture(rng)
  text = rng.choice(INSTRUCTIONS).format(rng.choice(COLOURS))
  last = num_steps - 1
  steps = [
    {
      "action": action_fields(motion[t], t == num_steps // 2, t == last),
      "is_first": t == 0,
      "is_last": t == last,
      "is_terminal": t == last,
      "observation": observation_fields(
        seen(texture, pose[t], noise, rng), text, pose[t]
      ),
      "reward": np.float32(t == last),
    }
    for t in range(num_steps)
  ]
  return {**EPISODE_FIELDS, "steps": steps}


def smooth_texture(rng: np.random.Generator) -> np.ndarray:
  """Draws random colours, interpolated: float32[H + margin, W + margin, 3]."""
  height, width = HEIGHT + MARGIN, WIDTH + MARGIN
  grain = (height // GRAIN, width // GRAIN, 3)
  colours = Image.fromarray(rng.integers(0, 256, grain, np.uint8))
  return np.asarray(
    colours.resize((width, height), Image.Resampling.BICUBIC), np.float32
  )


def seen(
  texture: np.ndarray,
  pose: np.ndarray,
  noise: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """Crops what the camera sees from a pose, uint8[H, W, 3], with its noise."""
  x, y = (MARGIN * (pose - LOW) / (HIGH - LOW)).astype(int)[:2]
  image = texture[x : x + HEIGHT, y : y + WIDTH]
  grainy = image + noise * rng.standard_normal(image.shape, np.float32)
  return np.clip(np.round(grainy), 0, 255).astype(np.uint8)


def action_fields(
  motion: np.ndarray, closes: bool, terminates: bool
) -> dict[str, np.ndarray]:
  """Writes an action's six fields: the base stands still, only yaw turns."""
  return {
    "base_displacement_vector": np.zeros(2, np.float32),
    "base_displacement_vertical_rotation": np.zeros(1, np.float32),
    "gripper_closedness_action": np.array([closes], np.float32),
    "rotation_delta": np.array([0, 0, motion[3]], np.float32),
    # One-hot: end the episode, move the arm, or move the base.
    "terminate_episode": np.array([terminates, not terminates, 0], np.int32),
    "world_vector": motion[:3].astype(np.float32),
  }


def observation_fields(
  image: np.ndarray, instruction: str, pose: np.ndarray
) -> dict[str, Any]:
  """Writes a step's observation; fields without a meaning here are 0."""
  zeros = {
    name: np.zeros(feature.shape, np.float32)
    for name, feature in OBSERVATION_FEATURES.items()
    if isinstance(feature, tfds.features.Tensor)
  }
  quaternion = [0, 0, np.sin(pose[3] / 2), np.cos(pose[3] / 2)]
  return zeros | {
    "base_pose_tool_reached": np.array([*pose[:3], *quaternion], np.float32),
    "image": image,
    "natural_language_instruction": instruction,
  }


class Fractal20220817Data(EpisodesBuilder, skip_registration=True):
  """Writes `settings["train_episodes"]` and `settings["val_episodes"]`."""

  VERSION = tfds.core.Version("0.1.0")
  description = "Made-up episodes with the features of RT-1's data"
  license = "Apache-2.0"

  def features(self) -> tfds.features.FeaturesDict:
    return FEATURES

  def episodes(self, split: str) -> Iterator[dict[str, Any]]:
    settings = self.settings
    for number in range(settings[f"{split}_episodes"]):
      key = [settings["seed"], SPLITS.index(split), number]
      rng = np.random.default_rng(key)
      yield episode(rng, settings["num_steps"], settings["noise"])


def make(
  output_dir: str | os.PathLike,
  train_episodes: int,
  val_episodes: int,
  seed: int = 0,
  num_steps: int = 12,
  noise: float = NOISE,
) -> storage.Path:
  """Writes the episodes unless they are there already; returns their folder.

  Raises:
    UserError: the folder holds other data.
  """
  settings = {
    "noise": noise,
    "num_steps": num_steps,
    "seed": seed,
    "train_episodes": train_episodes,
    "val_episodes": val_episodes,
    "writer_version": WRITER_VERSION,
  }
  output_dir = storage.locate(output_dir, "--output_dir")
  folder = (
    output_dir / Fractal20220817Data.name / str(Fractal20220817Data.VERSION)
  )
  if folder.exists():
    check_settings(folder, settings)
    print(f"{folder} holds these episodes already")
    return folder
  with local_copies.made_for(output_dir) as local:
    builder = Fractal20220817Data(settings, data_dir=local)
    write_quietly(builder)
  print(f"{folder}: {builder.info.dataset_size / 1e6:.1f} MB")
  return folder


@program.main
def main():
  args = flags.FLAGS
  make(
    args.output_dir,
    args.train_episodes,
    args.val_episodes,
    args.seed,
    args.num_steps,
    args.noise,
  )


if __name__ == "__main__":
  flags.DEFINE_string("output_dir", None, "Where to write", required=True)
  flags.DEFINE_integer("train_episodes", 80, "How many", lower_bound=1)
  flags.DEFINE_integer("val_episodes", 20, "How many", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Gives other episodes", lower_bound=0)
  flags.DEFINE_integer("num_steps", 12, "Of an episode", lower_bound=2)
  flags.DEFINE_float(
    "noise", NOISE, "Of the camera, in grey levels", lower_bound=0.0
  )
  app.run(main)

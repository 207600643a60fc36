"""Renders tabletop robot episodes in the format of RT-1's public data set.

  python -m data.make_reach_episodes --output_dir=DIR \\
    --train_episodes=80 --val_episodes=20 --seed=0

writes `DIR/fractal20220817_data/0.1.0/` with the splits `train` and `val`,
through TFDS's own writer and with the exact features of that data set, so that
whatever reads it reads RT-1's real data too. The scenes are those of
`reach_scene.py`: a gripper picks an object or moves it near another, driven by
a scripted oracle at RT-1's 3 Hz, or at `--rate_hz`. The images mean something:
a model that learns from `train` can be measured on `val`.

Every episode is a pure function of (seed, split, number); the files' bytes are
not, since protocol buffers keep their fields in no order. Running the program
again with the same settings changes nothing. It needs no network.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# TensorFlow reads this when it is imported, and is quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import app, flags, logging

from data import reach_scene
from data.reach_scene import Action, Scene, State
from rt2_jax.errors import UserError
from rt2_jax.local_files import local_path

SPLITS = ("train", "val")
SCENE_VERSION = 1  # raise it whenever the same seed would give other episodes

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
  """The feature of an array of that shape."""
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


def episode(
  rng: np.random.Generator,
  sensor_noise: float = 0.0,
  rate: float = reach_scene.RATE,
) -> dict[str, Any]:
  """One episode as RT-1 records it: T steps, each an image and what follows.

  The image of a step shows the scene before its action; the last step's
  action terminates the episode and moves nothing.

  Args:
    rng: gives the scene.
    sensor_noise: standard deviation of the camera's noise, in grey levels.
    rate: steps per second, in Hz.
  """
  scene, state = reach_scene.sample(rng, rate)
  max_steps = round(reach_scene.MAX_STEPS / scene.pace)
  steps = []
  for t in range(max_steps):
    action = reach_scene.oracle(scene, state)
    steps.append(
      {
        "action": action_fields(action),
        "is_first": t == 0,
        "is_last": action.terminate,
        "is_terminal": action.terminate,
        "observation": observation_fields(scene, state),
        "reward": np.float32(action.terminate),
      }
    )
    if action.terminate:
      success = reach_scene.is_success(scene, state)
      if sensor_noise:
        add_noise(steps, sensor_noise, rng)
      return {**episode_fields(scene, success), "steps": steps}
    state = reach_scene.step(scene, state, action)
  raise RuntimeError(
    f"the oracle did not {scene.instruction!r} in {max_steps} steps; expected "
    "two thirds of them at most: see oracle() in data/reach_scene.py"
  )


def add_noise(
  steps: list[dict[str, Any]], level: float, rng: np.random.Generator
):
  """Makes the images of an episode as grainy as a camera's."""
  for step in steps:
    image = step["observation"]["image"]
    noise = rng.normal(0.0, level, image.shape)
    noisy = np.clip(np.round(image + noise), 0, 255)
    step["observation"]["image"] = noisy.astype(np.uint8)


def action_fields(action: Action) -> dict[str, np.ndarray]:
  """The action's six fields; the base stands still, only yaw turns."""
  return {
    "base_displacement_vector": np.zeros(2, np.float32),
    "base_displacement_vertical_rotation": np.zeros(1, np.float32),
    "gripper_closedness_action": np.array([action.grip], np.float32),
    "rotation_delta": np.array([0, 0, action.turn], np.float32),
    # One-hot: end the episode, move the arm, or move the base.
    "terminate_episode": np.array(
      [action.terminate, not action.terminate, 0], np.int32
    ),
    "world_vector": action.move,
  }


def observation_fields(scene: Scene, state: State) -> dict[str, Any]:
  """The image, the instruction and the gripper; what has no meaning here is 0.

  `base_pose_tool_reached` is x y z (m) and the quaternion x y z w.
  """
  half_yaw = state.gripper[3] / 2
  quaternion = np.array([0, 0, np.sin(half_yaw), np.cos(half_yaw)], np.float32)
  closed = np.array([state.closed], np.float32)
  zeros = {
    name: np.zeros(feature.shape, np.float32)
    for name, feature in OBSERVATION_FEATURES.items()
    if isinstance(feature, tfds.features.Tensor)
  }
  return zeros | {
    "base_pose_tool_reached": np.array(
      [*state.gripper[:3], *quaternion], np.float32
    ),
    "gripper_closed": closed,
    "gripper_closedness_commanded": closed,
    "height_to_bottom": np.array([state.gripper[2]], np.float32),
    "image": reach_scene.render(scene, state),
    "natural_language_instruction": scene.instruction,
    "src_rotation": quaternion,
  }


def episode_fields(scene: Scene, success: bool) -> dict[str, Any]:
  """What RT-1 says about an episode as a whole."""
  family = "pick" if scene.task.reference is None else "move near"
  names = dict.fromkeys([f"{name}_name" for name in ATTRIBUTES], "rendered")
  return {
    "aspects": {
      "already_success": False,
      "feasible": True,
      "has_aspects": True,
      "success": success,
      "undesirable": False,
    },
    "attributes": dict.fromkeys(ATTRIBUTES, 0)
    | names
    | {"task_family": int(family != "pick"), "task_family_name": family},
  }


# TFDS names the folder after the class. It is not registered, so that whoever
# imports this file still finds the real data set under its name.
class Fractal20220817Data(
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """Writes `settings["train_episodes"]` and `settings["val_episodes"]`."""

  VERSION = tfds.core.Version("0.1.0")
  # Beside the code TFDS would look for checksums of downloads. There are none,
  # and in a folder without __init__.py the search itself fails.
  code_path = None

  def __init__(self, settings: dict[str, float], data_dir: Path):
    self.settings = settings
    super().__init__(data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Rendered tabletop episodes with the features of RT-1's data",
      features=FEATURES,
      metadata=tfds.core.MetadataDict(self.settings),
      license="Apache-2.0",
    )

  def _split_generators(self, _) -> dict[str, Any]:
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(
    self, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    key = (self.settings["seed"], SPLITS.index(split))
    numbers = range(self.settings[f"{split}_episodes"])
    for number in tqdm.tqdm(numbers, desc=split, mininterval=1):
      rng = np.random.default_rng([*key, number])
      noise, rate = self.settings["sensor_noise"], self.settings["rate_hz"]
      yield number, episode(rng, noise, rate)


def make(
  output_dir: str | Path,
  train_episodes: int,
  val_episodes: int,
  seed: int,
  sensor_noise: float = 0.0,
  rate_hz: float = reach_scene.RATE,
) -> Path:
  """Writes the episodes unless they are there already; returns their folder."""
  settings = {
    "rate_hz": rate_hz,
    "scene_version": SCENE_VERSION,
    "seed": seed,
    "sensor_noise": sensor_noise,
    "train_episodes": train_episodes,
    "val_episodes": val_episodes,
  }
  output_dir = local_path(output_dir, "--output_dir")
  folder = (
    output_dir / Fractal20220817Data.name / str(Fractal20220817Data.VERSION)
  )
  if folder.exists():
    check_settings(folder, settings)
    print(f"{folder} holds these episodes already")
    return folder
  builder = Fractal20220817Data(settings, data_dir=output_dir)
  write_quietly(builder)
  print(f"{folder}: {builder.info.dataset_size / 1e6:.1f} MB")
  return folder


def write_quietly(builder: tfds.core.DatasetBuilder) -> None:
  """Runs the writer without its talk of downloads; ours is the only bar."""
  tfds.disable_progress_bar()
  with (
    tempfile.TemporaryDirectory() as nothing_to_download,
    contextlib.redirect_stdout(io.StringIO()),
  ):
    builder.download_and_prepare(download_dir=nothing_to_download)


def check_settings(folder: Path, settings: dict[str, float]) -> None:
  """Raises unless the folder holds what these settings would write."""
  path = folder / "metadata.json"  # where TFDS keeps a data set's metadata
  found = json.loads(path.read_text()) if path.exists() else None
  if found != settings:
    raise FileExistsError(
      f"{folder}: got data made with {found or 'another program'}, expected "
      f"{settings}; pass another --output_dir, or remove the folder"
    )


def main(_):
  logging.set_verbosity(logging.ERROR)
  args = flags.FLAGS
  try:
    make(
      args.output_dir,
      args.train_episodes,
      args.val_episodes,
      args.seed,
      args.sensor_noise,
      args.rate_hz,
    )
  except (UserError, OSError) as error:
    sys.exit(str(error))


if __name__ == "__main__":
  # Flags are defined only when this file is the program: absl's names are
  # global, and tests import several programs into one process.
  flags.DEFINE_string("output_dir", None, "Where to write", required=True)
  flags.DEFINE_integer("train_episodes", 80, "How many", lower_bound=1)
  flags.DEFINE_integer("val_episodes", 20, "How many", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Gives other episodes", lower_bound=0)
  flags.DEFINE_float(
    "sensor_noise",
    0.0,
    "Standard deviation of the camera's noise in grey levels; 4 gives JPEGs "
    "as large as RT-1's",
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    "rate_hz",
    reach_scene.RATE,
    "Steps per second; the gripper is as fast at any rate, so that 12 gives "
    "episodes of 40 steps on average",
    lower_bound=1.0,
  )
  app.run(main)

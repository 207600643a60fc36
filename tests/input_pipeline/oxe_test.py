"""Open X-Embodiment datasets, on small sets in their exact feature specs.

The specs are those of TFDS's catalogue; TFDS writes the records.
"""

import math

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import tfds_writer
from rt2_jax.images import decode
from rt2_jax.input_pipeline.oxe import OXE_DATASETS
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec

F = tfds.features
LENGTH = 3
COMMANDS = [-1.0, 0.0, 1.0]  # open, hold, close
TEXTS = ["pick up the cup", "pick up the cup", "stop"]


def number(*shape, dtype=np.float32):
  return F.Tensor(shape=shape, dtype=dtype)


def image(*shape):
  return F.Image(shape=shape, dtype=np.uint8)


# Features that all datasets of a family have.
RTX = {
  "natural_language_embedding": number(512),
  "natural_language_instruction": F.Tensor(shape=(), dtype=np.str_),
}
EXTERNAL = {
  "discount": F.Scalar(np.float32),
  "language_embedding": number(512),
  "language_instruction": F.Text(),
}
AUSTIN = {
  "state": number(8),
  "state_ee": number(16),
  "state_gripper": number(1),
  "state_joint": number(7),
}
MOTION = {"rotation_delta": number(3), "world_vector": number(3)}
ENDS = {"terminate_episode": number()}
SEVEN = {"action": number(7), **EXTERNAL}


def rtx(action, **observation):
  return {"action": action, "observation": {**RTX, **observation}}


def external(images, **observation):
  cameras = {name: image(*images) for name in ("image", "wrist_image")}
  return {**SEVEN, "observation": {**cameras, **observation}}


SPECS = {
  "taco_play": rtx(
    {
      **{n: number(7) for n in ("actions", "rel_actions_gripper")},
      "rel_actions_world": number(7),
      **ENDS,
    },
    depth_gripper=number(84, 84),
    depth_static=number(150, 200),
    rgb_gripper=image(84, 84, 3),
    rgb_static=image(150, 200, 3),
    robot_obs=number(15),
    structured_language_instruction=F.Tensor(shape=(), dtype=np.str_),
  ),
  "jaco_play": rtx(
    {
      "gripper_closedness_action": number(1),
      "terminate_episode": number(3, dtype=np.int32),
      "world_vector": number(3),
    },
    end_effector_cartesian_pos=number(7),
    end_effector_cartesian_velocity=number(6),
    image=image(224, 224, 3),
    image_wrist=image(224, 224, 3),
    joint_pos=number(8),
  ),
  "berkeley_cable_routing": rtx(
    {**MOTION, **ENDS},
    robot_state=number(7),
    **{
      name: image(128, 128, 3)
      for name in ("image", "top_image", "wrist225_image", "wrist45_image")
    },
  ),
  "roboturk": rtx(
    {"gripper_closedness_action": number(1), **MOTION, **ENDS},
    front_rgb=image(480, 640, 3),
  ),
  "nyu_door_opening_surprising_effectiveness": rtx(
    {"gripper_closedness_action": number(1), **MOTION, **ENDS},
    image=image(720, 960, 3),
  ),
  "viola": rtx(
    {"gripper_closedness_action": number(), **MOTION, **ENDS},
    agentview_rgb=image(224, 224, 3),
    ee_states=number(16),
    eye_in_hand_rgb=image(224, 224, 3),
    gripper_states=number(1),
    joint_states=number(7),
  ),
  "berkeley_autolab_ur5": rtx(
    {"gripper_closedness_action": number(), **MOTION, **ENDS},
    hand_image=image(480, 640, 3),
    image=image(480, 640, 3),
    image_with_depth=F.Image(shape=(480, 640, 1), dtype=np.float32),
    robot_state=number(15),
  ),
  "toto": rtx(
    {"open_gripper": number(dtype=np.bool_), **MOTION, **ENDS},
    image=image(480, 640, 3),
    state=number(7),
  ),
  "bc_z": rtx(
    {
      "future/axis_angle_residual": number(30),
      "future/target_close": number(10, dtype=np.int64),
      "future/xyz_residual": number(30),
    },
    episode_success=number(),
    image=image(171, 213, 3),
    sequence_length=number(dtype=np.int64),
    **{
      "present/autonomous": number(dtype=np.int64),
      "present/axis_angle": number(3),
      "present/intervention": number(dtype=np.int64),
      "present/sensed_close": number(1),
      "present/xyz": number(3),
    },
  ),
  "stanford_hydra_dataset_converted_externally_to_rlds": {
    **external((240, 320, 3), state=number(27)),
    "is_dense": F.Scalar(np.bool_),
  },
  "austin_buds_dataset_converted_externally_to_rlds": external(
    (128, 128, 3), state=number(24)
  ),
  "austin_sailor_dataset_converted_externally_to_rlds": external(
    (128, 128, 3), **AUSTIN
  ),
  "austin_sirius_dataset_converted_externally_to_rlds": {
    **external((84, 84, 3), **AUSTIN),
    "action_mode": number(1),
    "intv_label": number(1),
  },
  "utaustin_mutex": external((128, 128, 3), state=number(24)),
}


def values(spec, rng):
  """Draws a step of a spec; small images of one colour in each quarter."""
  if isinstance(spec, dict):
    return {name: values(each, rng) for name, each in spec.items()}
  if isinstance(spec, F.Image):
    height, width, channels = spec.shape
    corners = rng.integers(0, 256, (2, 2, channels))
    grown = corners.repeat(math.ceil(height / 2), 0)[:height]
    grown = grown.repeat(math.ceil(width / 2), 1)[:, :width]
    return grown.astype(spec.np_dtype)
  if spec.np_dtype in (str, np.str_, object):
    return "other words"
  if np.issubdtype(spec.np_dtype, np.floating):
    return rng.uniform(-1, 1, spec.shape).astype(np.float32)
  return np.asarray(rng.integers(0, 2, spec.shape), spec.np_dtype)


def episode(spec, seed):
  rng = np.random.default_rng(seed)
  steps = []
  for t in range(LENGTH):
    step = values(spec, rng)
    if "language_instruction" in step:
      step["language_instruction"] = TEXTS[t]
    else:
      step["observation"]["natural_language_instruction"] = TEXTS[t]
    last = t == LENGTH - 1
    action, shapes = step["action"], spec["action"]
    names = shapes if isinstance(shapes, dict) else ()
    if "terminate_episode" in names:
      is_vector = shapes["terminate_episode"].shape
      one_hot = np.array([last, not last, 0], np.int32)
      action["terminate_episode"] = one_hot if is_vector else float(last)
    if "gripper_closedness_action" in names:
      shape = shapes["gripper_closedness_action"].shape
      command = np.full(shape, COMMANDS[t], np.float32)
      action["gripper_closedness_action"] = command
    flags = {"is_first": t == 0, "is_last": last, "is_terminal": last}
    steps.append({**step, **flags, "reward": np.float32(last)})
  return steps


def write(folder, name, spec, steps):
  """Writes one episode with TFDS; returns the version folder."""
  features = {
    **spec,
    **{n: np.bool_ for n in ("is_first", "is_last", "is_terminal")},
    "reward": F.Scalar(np.float32),
  }

  class Builder(tfds_writer.EpisodesBuilder, skip_registration=True):
    VERSION = tfds.core.Version("0.1.0")
    description = license = "a test"

    def features(self):
      return F.FeaturesDict({"steps": F.Dataset(features)})

    def episodes(self, split):
      yield {"steps": steps}

  Builder.name = name
  builder = Builder({}, folder)
  tfds_writer.write_quietly(builder)
  return folder / name / "0.1.0"


def by_hand(name, steps):
  """Computes the actions from the steps, one number after the other."""
  rows = []
  for t, step in enumerate(steps):
    action = step["action"]
    if not isinstance(action, dict):
      motion, opening = action[:6], 1 - min(max(action[6], 0), 1)
    elif name == "taco_play":
      world = action["rel_actions_world"]
      motion = [*(0.02 * world[:3]), *(0.05 * world[3:6])]
      opening = min(max(world[6], 0), 1)
    elif name == "bc_z":
      turns = action["future/axis_angle_residual"][:3]
      motion = [*action["future/xyz_residual"][:3], *turns]
      opening = 1 - action["future/target_close"][0]
    else:
      turns = action.get("rotation_delta", np.zeros(3))
      motion = [*action["world_vector"], *turns]
      if name == "toto":
        opening = float(action["open_gripper"])
      elif name == "berkeley_cable_routing":
        opening = 0.0
      else:  # opens, holds (0 = open where it is no command), closes
        opening = [1.0, 1.0, 0.0][t]
    rows.append([float(t == LENGTH - 1), *motion, opening])
  return np.float32(rows)


def test_every_dataset_has_a_spec():
  assert set(SPECS) == set(OXE_DATASETS)


@pytest.mark.parametrize("name", SPECS)
def test_what_tfds_wrote_is_read(tmp_path, name):
  steps = episode(SPECS[name], seed=len(name))
  folder = write(tmp_path, name, SPECS[name], steps)
  cameras = OXE_DATASETS[name].cameras
  spec = ObservationSpec(cameras=tuple(cameras))
  config = SourceConfig(name, str(folder))
  source = open_source(config, "train", spec)
  np.testing.assert_allclose(
    source.index.action, by_hand(name, steps), rtol=1e-6
  )
  assert [source.instruction(t) for t in range(LENGTH)] == TEXTS
  for t, requests in enumerate(source.requests(range(LENGTH))):
    shown = map(decode, source.storage.read(requests))
    for feature, pixels in zip(cameras.values(), shown, strict=True):
      expected = steps[t]["observation"][feature.removeprefix("observation/")]
      np.testing.assert_array_equal(pixels, expected)

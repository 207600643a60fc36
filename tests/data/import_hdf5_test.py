"""HDF5 files of three kinds, and of any other, become what h5py reads."""

import json

import h5py
import numpy as np
import pytest
import simplejpeg
from scipy.spatial.transform import Rotation

from data import import_hdf5, import_program
from data.import_program import Options
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from tests.data import tiny_robots

OPTIONS = Options("arm", num_workers=1)
ROBOMIMIC = {
  "pose": "robot0_eef_pos",
  "turn": "robot0_eef_quat",
  "fingers": "robot0_gripper_qpos",
  "front": "agentview_image",
  "wrist": "robot0_eye_in_hand_image",
}
LIBERO = {
  "pose": "ee_pos",
  "turn": "ee_ori",
  "fingers": "gripper_states",
  "front": "agentview_rgb",
  "wrist": "eye_in_hand_rgb",
}


def imported(tmp_path, pattern, options=OPTIONS, **flags):
  recordings = import_hdf5.open_recordings(str(pattern), **flags)
  folder = import_program.import_recordings(
    recordings, tmp_path / "out", options
  )
  config = SourceConfig("robot.json", str(folder))
  cameras = tuple(config.robot.cameras)
  spec = config.observation_spec(ObservationSpec(cameras=cameras), True)
  return config, open_source(config, "train", spec)


def stored_pictures(source, i):
  return source.storage.read(source.requests([i])[0])


def encoded(*pictures):
  return [
    simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=95)
    for picture in pictures
  ]


def demos(path):
  """(h5py's group, steps before it) in the order of their numbers."""
  file = h5py.File(path, "r")
  return [(file[f"data/demo_{d}"], 3 * d) for d in range(12)]


def test_libero(tmp_path):
  told = {"language_instruction": "open the drawer", "x": 1}
  path = tiny_robots.write_robomimic(
    tmp_path / "a.hdf5", LIBERO, problem_info=json.dumps(told)
  )
  config, source = imported(tmp_path, path)
  assert config.space.names == (
    *("terminate", "dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
  )
  assert [d.unit for d in config.space.dimensions[1:4]] == ["m"] * 3
  scale = np.array([0.05] * 3 + [0.5] * 3)
  for demo, first in demos(path):
    action = np.asarray(demo["actions"])
    state = np.hstack(
      [demo[f"obs/{n}"] for n in ("ee_pos", "ee_ori", "gripper_states")]
    )
    found = source.index.action[first : first + 3]
    np.testing.assert_allclose(found[:, 1:7], scale * action[:, :6], rtol=1e-6)
    np.testing.assert_allclose(found[:, 7], (1 - action[:, 6]) / 2, atol=1e-6)
    np.testing.assert_allclose(
      source.index.state[first : first + 3], state, rtol=1e-6
    )
    for t in range(3):
      # Files hold them upside down.
      shown = encoded(
        demo["obs/agentview_rgb"][t][::-1, ::-1],
        demo["obs/eye_in_hand_rgb"][t][::-1, ::-1],
      )
      assert stored_pictures(source, first + t) == shown
  assert source.instruction(7) == "open the drawer"


def test_robomimic_with_a_quaternion(tmp_path):
  path = tiny_robots.write_robomimic(tmp_path / "a.hdf5", ROBOMIMIC)
  with pytest.raises(UserError, match="demo_0: .*--instruction"):
    imported(tmp_path, path)
  options = OPTIONS._replace(rotation=("state[3:7]=quaternion_xyzw",))
  config, source = imported(
    tmp_path,
    path,
    options,
    instruction="lift the cube",
    cameras=[
      "wrist=obs/robot0_eye_in_hand_image",
      "primary=obs/agentview_image",
    ],
  )
  assert config.robot.state.space.names == (
    *("x", "y", "z", "roll", "pitch", "yaw", "finger_0", "finger_1"),
  )
  for demo, first in demos(path):
    turn = Rotation.from_quat(demo["obs/robot0_eef_quat"]).as_euler("xyz")
    found = source.index.state[first : first + 3, 3:6]
    np.testing.assert_allclose(found, turn, rtol=1e-5, atol=1e-6)
    assert stored_pictures(source, first) == encoded(
      demo["obs/robot0_eye_in_hand_image"][0], demo["obs/agentview_image"][0]
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_aloha(tmp_path, compressed):
  """Two arms; pictures may be JPEGs, padded to one length."""
  expected = {}
  for e in range(2):
    rng = np.random.default_rng(e)
    action = rng.uniform(-1, 1, (4, 14))
    action[:, [6, 13]] = [[-0.02, 1.0], [0.5, 0.5], [1.03, 0.0], [0.2, 0.1]]
    frames = tiny_robots.pictures(e, 4)
    with h5py.File(tmp_path / f"episode_{e}.hdf5", "w") as file:
      file["action"] = action
      file["observations/qpos"] = np.clip(action, -1, 1)
      stored = frames
      if compressed:
        files = encoded(*frames)
        stored = np.zeros((4, 20_000), np.uint8)
        for row, data in zip(stored, files, strict=True):
          row[: len(data)] = np.frombuffer(data, np.uint8)
      file["observations/images/cam_high"] = stored
    expected[4 * e] = (action, frames)
  config, source = imported(
    tmp_path, tmp_path / "episode_*.hdf5", instruction="hand it over"
  )
  assert config.robot.rate_hz == 50
  assert config.space.names[7] == "left_gripper"
  for first, (action, frames) in expected.items():
    found = source.index.action[first : first + 4]
    np.testing.assert_allclose(found[:, 1:7], action[:, :6], rtol=1e-6)
    # The ends are those that were recorded: -0.02 is closed, 1.03 is open.
    opening = (action[:, 6] + 0.02) / 1.05
    np.testing.assert_allclose(found[:, 7], opening, atol=1e-6)
    for t in range(4):
      assert stored_pictures(source, first + t) == encoded(frames[t])


def test_names_with_brackets_are_no_patterns(tmp_path):
  folder = tmp_path / "demos[1]"
  folder.mkdir()
  path = tiny_robots.write_robomimic(folder / "all[2].hdf5", ROBOMIMIC)
  for place in (folder, path):
    found = import_hdf5.open_recordings(str(place), instruction="lift")
    assert len(found.names) == 12


def test_any_other_file_by_its_places(tmp_path):
  path = tmp_path / "mine.h5"
  with h5py.File(path, "w") as file:
    for name, text in (("run_2", "second"), ("run_10", b"tenth")):
      group = file.create_group(f"runs/{name}")
      group.attrs["instruction"] = text
      group["command"] = np.full((3, 2), len(text))
      group["feedback/joints"] = np.ones((3, 2))
      group["feedback/force"] = np.zeros(3)
      group["eyes/left"] = tiny_robots.pictures(1, 3)
      group["depth"] = np.zeros((3, 8, 8), np.float32)
  flags = {
    "episodes": r"runs/run_\d+",
    "action": "command",
    "state": ["feedback/joints", "feedback/force"],
    "pictures": r"eyes/\w+",
    "rate_hz": 15.0,
  }
  config, source = imported(tmp_path, path, **flags)
  assert config.space.names == ("terminate", "command_0", "command_1")
  assert config.robot.state.space.names == ("joints_0", "joints_1", "force_0")
  assert source.instruction(0) == "second" and source.instruction(3) == "tenth"
  assert [d.unit for d in config.space.dimensions[1:]] == ["as recorded"] * 2
  for change, told in (
    ({"action": "comand"}, "did you mean 'command'"),
    ({"episodes": "demo"}, "--episodes"),
    ({"episodes": "runs/*["}, r"--episodes='runs/\*\['"),
    ({"pictures": "*left"}, r"--pictures='\*left'"),
    ({"rate_hz": None}, "--rate_hz"),
    ({"pictures": "depth"}, r"float32\[8, 8\]"),
    ({"action": ""}, "--pictures"),
  ):
    with pytest.raises(UserError, match=told):
      imported(tmp_path / "other", path, **flags | change)


@pytest.mark.parametrize(
  ("name", "values", "told"),
  [
    ("qpos", np.zeros((5, 14)), "5 steps of .*qpos and 4 actions"),
    ("qpos", np.zeros((4, 7)), "7 numbers of a state, expected 14"),
    ("action", np.zeros((4, 7)), "7 numbers of an action, expected 14"),
    ("action", np.zeros((0, 14)), "4 steps of .*qpos and 0 actions"),
    ("action", np.zeros(()), "values of action"),
    ("action", np.array([b"a"] * 4), "values of action"),
    ("images/top", np.array(["0.jpg"] * 4, "S"), r"S5\[\]"),
    ("images/top", np.zeros(4, np.uint8), r"uint8\[\]"),
    ("images/top", np.uint8(0), r'"top": shape \(\)'),
  ],
)
def test_an_episode_of_other_numbers_is_damaged(tmp_path, name, values, told):
  for e in range(2):
    with h5py.File(tmp_path / f"episode_{e}.hdf5", "w") as file:
      stored = {
        "action": np.zeros((4, 14)),
        "observations/qpos": np.zeros((4, 14)),
        "observations/images/top": tiny_robots.pictures(e, 4),
      }
      if e:
        stored[f"observations/{name}" if name != "action" else name] = values
      for place, data in stored.items():
        file[place] = data
  with pytest.raises(UserError, match=f"episode_1.hdf5: (.|\n)*{told}"):
    imported(tmp_path, tmp_path, instruction="lift")
  options = OPTIONS._replace(max_skipped=1)
  _, source = imported(tmp_path, tmp_path, options, instruction="lift")
  assert len(source) == 4


def test_what_cannot_be_read_is_named(tmp_path):
  (tmp_path / "cut.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))
  with pytest.raises(UserError, match="cut.hdf5.*copy it again"):
    imported(tmp_path, tmp_path)
  with pytest.raises(UserError, match="no HDF5 file matches"):
    imported(tmp_path, tmp_path / "*.h6")

"""Each thing that may be wrong with recordings is found, and nothing else."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data import check_episodes
from data.recorded_episodes import read_split
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.sources import SourceConfig
from tests import tiny_datasets
from tests.conftest import ROOT

LENGTH = 60
JOINTS = ("shoulder", "elbow")
ROBOT = {
  "rate_hz": 10,
  "cameras": {"primary": "observation/image"},
  "instruction": "language_instruction",
  "action": [
    *(
      {
        "name": name,
        "unit": "rad",
        "feature": "action",
        "column": i,
        "low": -1.1,
        "high": 1.1,
      }
      for i, name in enumerate(JOINTS)
    ),
    {
      "name": "gripper",
      "feature": "action",
      "column": 2,
      "gripper": {"open": 1, "closed": 0},
    },
  ],
  "state": [
    {"name": name, "unit": "rad", "feature": "observation/state", "column": i}
    for i, name in enumerate(JOINTS)
  ],
}


def recorded(seed: int) -> dict[str, np.ndarray]:
  """A sound episode: joints swing, and the arm follows a step later."""
  time = np.arange(LENGTH) / 10 + seed
  action = np.stack(
    [np.sin(time), np.cos(1.3 * time), (np.sin(time) > 0) * 1.0], -1
  )
  state = np.concatenate([action[:1, :2], action[:-1, :2]])
  return {
    "action": action,
    "state": state,
    "timestamp": np.arange(LENGTH) / 10,
    "texts": ["wave at the door"] * LENGTH,
    "pictures": [
      tiny_datasets.jpeg(100 * seed + t % 100) for t in range(LENGTH)
    ],
  }


def features(episode) -> dict[str, list]:
  """The features of a record."""
  return {
    "steps/is_first": [int(t == 0) for t in range(LENGTH)],
    "steps/is_last": [int(t == LENGTH - 1) for t in range(LENGTH)],
    "steps/action": episode["action"].ravel().tolist(),
    "steps/timestamp": episode["timestamp"].tolist(),
    "steps/language_instruction": [
      t if isinstance(t, bytes) else t.encode() for t in episode["texts"]
    ],
    "steps/observation/state": episode["state"].ravel().tolist(),
    "steps/observation/image": episode["pictures"],
  }


def written(folder, *changes, robot=ROBOT):
  """Four episodes; each change is made to the second of them."""
  episodes = [recorded(seed) for seed in range(4)]
  for change in changes:
    change(episodes[1])
  tiny_datasets.write(folder, [features(e) for e in episodes], "desk")
  (folder / "robot.json").write_text(json.dumps(robot))
  return folder


def found(folder) -> dict[str, bool]:
  """Titles of the findings, and whether each is an error."""
  split = read_split(SourceConfig("robot.json", str(folder)), "train")
  return {f.title: f.is_error for f in check_episodes.check(split)}


def test_sound_recordings_give_no_finding(tmp_path):
  assert found(written(tmp_path)) == {}


def pauses(episode):
  episode["action"][15:] = episode["action"][15]
  episode["state"][16:] = episode["action"][15, :2]


def jumps(episode):
  episode["action"][30, 0] = 3.0


def loses_steps(episode):
  episode["timestamp"][20:] += 0.3


def hangs(episode):
  episode["pictures"][10:40] = [episode["pictures"][10]] * 30


def shows_nothing(episode):
  file = io.BytesIO()
  Image.new("RGB", (64, 64)).save(file, "jpeg")
  episode["pictures"][LENGTH // 2] = file.getvalue()


def repeats(episode):
  episode |= recorded(2)


def says_nothing(episode):
  episode["texts"] = ["  "] * LENGTH


def says_too_much(episode):
  episode["texts"] = ["wave at the door " * 20] * LENGTH


def writes_otherwise(episode):
  episode["texts"] = ["Wave at the  door."] * LENGTH


def says_a_control_word(episode):
  episode["texts"] = ["wave at the <eos> door"] * LENGTH


def is_not_utf8(episode):
  episode["texts"] = [b"caf\xe9"] * LENGTH


def has_a_nan(episode):
  episode["action"][7, 1] = np.nan


def is_undecodable(episode):
  episode["pictures"][LENGTH // 2] = b"\xff\xd8\xff no picture"


@pytest.mark.parametrize(
  ("change", "title", "is_error"),
  [
    (pauses, "the robot stands still", False),
    (jumps, "shoulder jumps", False),
    (loses_steps, "gaps between time stamps", False),
    (hangs, "camera primary hangs", False),
    (shows_nothing, "pictures of primary show nothing", True),
    (repeats, "episodes are there twice", True),
    (says_nothing, "empty instructions", True),
    (says_too_much, "long instructions", False),
    (writes_otherwise, "one instruction, several spellings", False),
    (says_a_control_word, "instructions that cannot be written", True),
    (is_not_utf8, "damaged episodes", True),
    (has_a_nan, "damaged episodes", True),
    (is_undecodable, "pictures of primary do not decode", True),
  ],
)
def test_one_episode_of_four(tmp_path, change, title, is_error):
  assert found(written(tmp_path, change)) == {title: is_error}


def robot_with(**fields):
  return ROBOT | fields


def number(i: int, **fields):
  """The description with other fields of one number of the action."""
  action = [dict(row) for row in ROBOT["action"]]
  action[i] = {
    k: v for k, v in {**action[i], **fields}.items() if v is not None
  }
  return robot_with(action=action)


@pytest.mark.parametrize(
  ("robot", "title", "is_error"),
  [
    (number(0, low=-30.0, high=30.0), "bounds that do not fit", True),
    (number(1, low=-0.1, high=0.1), "bounds that do not fit", True),
    (number(1, unit="as recorded"), "units are not said", False),
    (
      number(2, name="claw", unit="m", low=-0.1, high=1.1, gripper=None),
      "numbers that may be grippers",
      False,
    ),
    (robot_with(rate_hz=30), "another rate", True),
    (
      robot_with(state=[ROBOT["state"][1] | {"name": "shoulder"}]),
      "the state does not follow shoulder",
      True,
    ),
    (
      robot_with(state=[ROBOT["state"][0] | {"scale": 57.3}]),
      "the state moves 57 times as far as shoulder",
      False,
    ),
  ],
)
def test_what_the_description_says(tmp_path, robot, title, is_error):
  assert found(written(tmp_path, robot=robot)) == {title: is_error}


def test_numbers_that_never_change_and_that_are_cut_off(tmp_path):
  episodes = [recorded(seed) for seed in range(4)]
  for episode in episodes:
    episode["action"][:, 0] = 0.3
    episode["action"][:, 1] = episode["action"][:, 1].clip(-1, 0.4)
  tiny_datasets.write(tmp_path, [features(e) for e in episodes], "desk")
  robot = number(0, low=0.2, high=0.4)
  (tmp_path / "robot.json").write_text(json.dumps(robot))
  assert found(tmp_path) == {
    "numbers that never change": False,
    "numbers that rest at an end": False,
  }


def test_unix_seconds_of_32_bits_tell_no_time(tmp_path):
  episodes = [recorded(seed) for seed in range(4)]
  for episode in episodes:
    episode["timestamp"] = np.float32(episode["timestamp"] + 1.7e9)
  tiny_datasets.write(tmp_path, [features(e) for e in episodes], "desk")
  (tmp_path / "robot.json").write_text(json.dumps(ROBOT))
  assert found(tmp_path) == {"time stamps stand still": False}


def test_a_joint_at_rest_need_not_be_followed(tmp_path):
  """The arm that a task does not use: what its sensor says is noise."""
  episodes = [recorded(seed) for seed in range(4)]
  noise = np.random.default_rng(0).normal(scale=1e-3, size=(4, LENGTH, 2))
  for episode, (command, sensed) in zip(
    episodes, noise.transpose(0, 2, 1), strict=True
  ):
    episode["action"][:, 1], episode["state"][:, 1] = command, sensed
  tiny_datasets.write(tmp_path, [features(e) for e in episodes], "desk")
  robot = number(1, low=-2e-3, high=2e-3)
  (tmp_path / "robot.json").write_text(json.dumps(robot))
  assert found(tmp_path)["the state does not follow elbow"] is False


def test_records_that_are_missing(tmp_path):
  folder = written(tmp_path)
  info = json.loads((folder / "dataset_info.json").read_text())
  info["splits"][0]["shardLengths"] = ["6"]
  (folder / "dataset_info.json").write_text(json.dumps(info))
  assert found(folder) == {"records are missing": True}


def test_a_part_of_a_split(tmp_path):
  """Episode 1 has a text that is not UTF-8."""

  def garbles(episode):
    episode["texts"] = [b"\xff"] * LENGTH

  config = SourceConfig("robot.json", str(written(tmp_path, garbles)))
  for part, episodes, damaged in (
    ("train[:50%]", ["episode 0"], 1),
    ("train[2:]", ["episode 2", "episode 3"], 0),
  ):
    split = read_split(config, part)
    assert [e.name.rpartition(", ")[2] for e in split.episodes] == episodes
    assert len(split.damaged) == damaged
    assert (split.stated, split.found) == (2, 2)
  info = json.loads((tmp_path / "dataset_info.json").read_text())
  del info["splits"][0]["shardLengths"]
  (tmp_path / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(UserError, match="expected 'train'"):
    read_split(config, "train[2:]")


def test_a_folder_is_named_as_in_a_config(tmp_path, monkeypatch):
  """By ~, and by the folder of a single version; a shard may be stated empty.

  TensorFlow's writer leaves a file of no bytes.
  """
  folder = tmp_path / "desk/1.0.0"
  episodes = [features(recorded(seed)) for seed in range(4)]
  tiny_datasets.write(folder, episodes, "desk", num_shards=5)
  (folder / "robot.json").write_text(json.dumps(ROBOT))
  monkeypatch.setenv("HOME", str(tmp_path))
  split = read_split(SourceConfig("robot.json", "~/desk"), "train")
  assert check_episodes.check(split) == []
  assert (split.stated, split.found) == (4, 4)


def test_the_page_and_the_exit_code(tmp_path):
  """Texts of a data set are no HTML; figures stand in the page."""

  def says_html(episode):
    episode["texts"] = ["<script>alert(1)</script>"] * LENGTH

  folder = written(
    tmp_path / "data", says_html, robot=number(0, low=-30.0, high=30.0)
  )
  page = tmp_path / "new/check.html"
  command = [sys.executable, "-m", "data.check_episodes"]
  command += [f"--path={folder}", f"--output={page}"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 1, done.stderr
  assert "ERROR: bounds that do not fit" in done.stdout
  text = page.read_text()
  assert "<script>" not in text and "&lt;script&gt;" in text
  assert text.count("<svg") == 1 and text.count("data:image/jpeg;base64") == 1
  q01, q99 = np.quantile(
    np.concatenate([recorded(s)["action"][:, 0] for s in range(4)]),
    [0.01, 0.99],
  )
  row = re.search(r"<pre><code>(.*?)</code>", text)[1].replace("&#34;", '"')
  fields = json.loads(row)
  assert fields["name"] == "shoulder"
  assert [fields["low"], fields["high"]] == pytest.approx([q01, q99], rel=1e-5)

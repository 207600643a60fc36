"""robot.json: units, columns and grippers as described; slips are named."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import description
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from tests import tiny_datasets
from tests.conftest import ROOT

KITCHEN = {
  "rate_hz": 10,
  "cameras": {"primary": "observation/image", "wrist": "observation/hand"},
  "instruction": "task",
  "action": [
    {
      "name": "dx",
      "unit": "m",
      "feature": "arm",
      "column": 1,
      "scale": 0.001,
      "low": -0.02,
      "high": 0.02,
    },
    {"name": "elbow", "unit": "rad", "feature": "arm", "offset": 0.5},
    {
      "name": "gripper",
      "feature": "hand",
      "gripper": {"open": -1, "closed": 1},
    },
  ],
  "state": [{"name": "z", "unit": "m", "feature": "pose", "column": 2}],
}
ARM = np.array([[0.1, 10.0], [0.2, -20.0], [0.3, 5.0], [0.4, 0.0]])
HAND = np.array([-1.0, 0.0, 1.0, 1.0])
POSE = np.arange(12.0).reshape(4, 3)


def episode() -> dict[str, list]:
  """Four steps in the format that `KITCHEN` describes."""
  return {
    "metadata/success": [1],
    "steps/is_first": [1, 0, 0, 0],
    "steps/is_last": [0, 0, 0, 1],
    "steps/arm": ARM.ravel().tolist(),
    "steps/hand": HAND.tolist(),
    "steps/pose": POSE.ravel().tolist(),
    "steps/task": [b"wipe the table"] * 4,
    "steps/observation/image": [tiny_datasets.jpeg(t) for t in range(4)],
    "steps/observation/hand": [
      tiny_datasets.jpeg(9 + t, 32, 48) for t in range(4)
    ],
  }


def changed(place: str, value) -> dict:
  """`KITCHEN` with one field replaced; a value of None removes it."""
  fields = copy.deepcopy(KITCHEN)
  *parents, last = [int(k) if k.isdecimal() else k for k in place.split(".")]
  part = fields
  for key in parents:
    part = part[key]
  if value is None:
    del part[last]
  else:
    part[last] = value
  return fields


def kitchen(tmp_path, fields=KITCHEN, features=None) -> SourceConfig:
  """A source whose records lie beside their description."""
  folder = tiny_datasets.write(tmp_path, [features or episode()], "kitchen")
  (folder / description.FILE).write_text(json.dumps(fields))
  return SourceConfig("robot.json", str(folder))


def test_a_folder_describes_itself(tmp_path):
  config = kitchen(tmp_path)
  assert config.space.names == ("terminate", "dx", "elbow", "gripper")
  assert [d.unit for d in config.space.dimensions[1:]] == ["m", "rad", "open"]
  assert config.space.dimensions[1].high == 0.02
  # After the end a motion is 0; what is absolute stays.
  assert [d.at_end for d in config.space.dimensions] == [1.0, 0.0, None, None]
  assert config.robot.rate_hz == 10
  assert dataclasses.replace(config, stride=4).control_hz == 2.5
  wanted = ObservationSpec(cameras=("primary", "wrist"))
  source = open_source(config, "train", config.observation_spec(wanted, True))
  np.testing.assert_allclose(
    source.index.action,
    [
      [0, 0.01, 0.6, 1.0],
      [0, -0.02, 0.7, 0.5],
      [0, 0.005, 0.8, 0.0],
      [1, 0.0, 0.9, 0.0],
    ],
    atol=1e-6,
  )
  np.testing.assert_allclose(source.index.state, POSE[:, 2:])
  assert source.instruction(2) == "wipe the table"
  shown = source.storage.read(source.requests([2])[0])
  assert shown == [tiny_datasets.jpeg(2), tiny_datasets.jpeg(11, 32, 48)]


def test_it_may_lie_elsewhere_and_be_changed(tmp_path):
  """The index of a folder is made again when its description changes."""
  config = kitchen(tmp_path / "data")
  path = tmp_path / "mine.json"
  path.write_text(json.dumps(KITCHEN))
  config = SourceConfig(str(path), config.path)
  kept = {"index_folder": tmp_path / "index"}
  first = open_source(config, "train", **kept).index
  assert first.action[0, 1] == pytest.approx(0.01)
  for value, dx in ((0.01, 0.1), (0.001, 0.01)):
    path.write_text(json.dumps(changed("action.0.scale", value)))
    again = open_source(config, "train", **kept).index
    assert again.action[0, 1] == pytest.approx(dx)


@pytest.mark.parametrize(
  ("kind", "recorded", "opening"),
  [
    ("absolute", [-1.0, 0.0, 0.5, 1.0], [1.0, 0.5, 0.25, 0.0]),
    ("binary", [-1.0, -0.2, 0.2, 1.0], [1.0, 0.0, 0.0, 0.0]),
    ("relative", [0.0, 1.0, 0.0, -1.0], [1.0, 0.0, 0.0, 1.0]),
  ],
)
def test_grippers(tmp_path, kind, recorded, opening):
  fields = changed("action.2.gripper.kind", kind)
  features = episode() | {"steps/hand": recorded}
  source = open_source(kitchen(tmp_path, fields, features), "train")
  np.testing.assert_allclose(source.index.action[:, 3], opening)


def test_terminate_comes_from_any_column_or_from_none(tmp_path):
  fields = changed("terminate", {"feature": "ends", "column": 1})
  features = episode() | {"steps/ends": [0, 0, 0, 0, 1, 1, 0, 1]}
  source = open_source(kitchen(tmp_path / "0", fields, features), "train")
  np.testing.assert_array_equal(source.index.action[:, 0], [0, 0, 1, 1])
  fields = KITCHEN | {"terminate": None}
  config = kitchen(tmp_path / "1", fields)
  assert config.space.names == ("dx", "elbow", "gripper")
  assert open_source(config, "train").index.action.shape == (4, 3)


def test_one_instruction_for_an_episode(tmp_path):
  fields = changed("instruction", "episode_metadata/task")
  features = episode() | {"episode_metadata/task": [b"close the tap"]}
  source = open_source(kitchen(tmp_path, fields, features), "train")
  assert {source.instruction(i) for i in range(4)} == {"close the tap"}


@pytest.mark.parametrize(
  ("place", "value", "parts"),
  [
    ("rate_hz", None, ["got no", "rate_hz"]),
    ("rate_hz", 0, ["rate_hz = 0", "more than 0"]),
    ("rate_hz", "fast", ["rate_hz = 'fast'"]),
    ("camera", "x", ["'camera'", "did you mean 'cameras'"]),
    ("cameras", {}, ["cameras {}"]),
    ("cameras", {"wrist": "hand"}, ["['wrist']", "'primary'"]),
    ("cameras", "observation/image", ["cameras = 'observation/image'"]),
    ("instruction", 3, ["instruction = 3", "a text"]),
    ("action", [], ["action dimensions []"]),
    ("action", {}, ["action = {}"]),
    ("action.0.colum", 3, ["action[0]", "'colum'", "did you mean 'column'"]),
    ("action.0.column", -1, ["action[0]", "column = -1", "at least 0"]),
    ("action.0.column", 1.5, ["column = 1.5", "whole number"]),
    ("action.0.scale", 0, ["scale 0"]),
    ("action.0.unit", None, ["no unit of 'dx'"]),
    ("action.0.name", "elbow", ["['elbow', 'elbow', 'gripper']"]),
    ("action.0.name", "terminate", ["'terminate', 'elbow'", "beside term"]),
    ("action.2.gripper.opened", 1, ["'opened'", "did you mean 'open'"]),
    ("action.2.gripper.open", 1, ["open=1", "closed=1"]),
    ("action.2.gripper.kind", "binry", ["did you mean 'binary'"]),
    ("action.2.unit", "m", ["['unit']"]),
    ("action.0", "dx", ["action[0]", "'dx'"]),
    ("terminate", {"feture": "x"}, ["terminate", "did you mean 'feature'"]),
    ("state.0.feature", None, ["got no", "state[0].feature"]),
  ],
)
def test_a_slip_is_named(tmp_path, place, value, parts):
  config = kitchen(tmp_path, changed(place, value))
  with pytest.raises(UserError) as caught:
    config.robot  # noqa: B018
  if value != {"wrist": "hand"}:  # told of any dataset
    parts = [str(tmp_path / "robot.json"), *parts]
  for part in parts:
    assert part in str(caught.value)


@pytest.mark.parametrize(
  ("place", "value", "parts"),
  [
    ("action.0.feature", "amr", ["'amr'", "'dx'", "did you mean 'arm'"]),
    ("action.0.column", 2, ["column 2 for 'dx'", "0 to 1"]),
    ("action.0.feature", "task", ["no number in 'task'", "texts or images"]),
    ("instruction", "tsk", ["'tsk'", "did you mean 'task'"]),
    ("instruction", "arm", ["numbers in 'arm'", "encoded texts"]),
    ("instruction", "metadata/success", ["got 0 texts", "expected one"]),
    ("cameras.primary", "pose", ["numbers in 'pose'", "encoded images"]),
    ("cameras.primary", "observation/img", ["observation/img"]),
    ("state.0.column", 3, ["column 3 for 'z'", "0 to 2"]),
    ("action.2.gripper.open", 0, ["got -1 in step 0 of 'hand'"]),
  ],
)
def test_what_the_records_contradict_is_named(tmp_path, place, value, parts):
  config = kitchen(tmp_path, changed(place, value))
  spec = config.observation_spec(ObservationSpec(), reads_state=True)
  with pytest.raises(UserError) as caught:
    open_source(config, "train", spec)
  for part in parts:
    assert part in str(caught.value)


def test_no_description_and_no_json(tmp_path):
  folder = tiny_datasets.write(tmp_path, [episode()], "kitchen")
  for dataset in ("robot.json", str(tmp_path / "other.json")):
    with pytest.raises(UserError, match="got no description .*json"):
      open_source(SourceConfig(dataset, str(folder)), "train")
  (tmp_path / "robot.json").write_text("{")
  with pytest.raises(UserError, match="no JSON"):
    open_source(SourceConfig("robot.json", str(folder)), "train")


def test_the_example_in_the_readme_is_read():
  text = (ROOT / "data/README.md").read_text()
  fields = json.loads(text.partition("```json\n")[2].partition("```")[0])
  found = description.parse(fields, "README").to_dataset()
  assert found.space.names == ("terminate", "dx", "dyaw", "gripper")
  assert found.state.space.names == ("x",)

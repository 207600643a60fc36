"""Conventions of each dataset: gripper, terminate, order of the numbers."""

import pathlib

import numpy as np
import pytest

from data import make_rt1_episodes
from rt2_jax.images import decode
from rt2_jax.input_pipeline import datasets
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from tests import tiny_datasets
from tests.conftest import ROOT

# What dataset_info.json calls the records that two datasets read.
RECORDED_AS = {
  "bridge_dataset_relabelled": "bridge_dataset",
  "tabletop_with_plan": "tabletop",
}
_BRIDGE = ROOT / "../shared/data/bridge_debug/bridge_dataset/1.0.0"


def test_bridge_terminates_on_its_last_step_only(tmp_path):
  config = tiny_datasets.bridge_source(tmp_path)
  index = open_source(config, "train").index
  np.testing.assert_array_equal(index.action[:, 0], [0, 0, 0, 0, 1] * 4)


def test_bridge_keeps_the_commanded_motion(tmp_path):
  config = tiny_datasets.bridge_source(tmp_path)
  index = open_source(config, "train").index
  episode = tiny_datasets.bridge_episode(0)
  recorded = np.reshape(episode["steps/action"], (5, 7)).astype(np.float32)
  np.testing.assert_array_equal(index.action[:5, 1:7], recorded[:, :6])


def canonical(tmp_path, dataset, features):
  """The index of one episode in the format of `dataset`."""
  camera = datasets.DATASETS[dataset].cameras["primary"]
  length = len(features["steps/is_first"])
  features[f"steps/{camera}"] = [tiny_datasets.jpeg(t) for t in range(length)]
  folder = tiny_datasets.write(
    tmp_path, [features], RECORDED_AS.get(dataset, dataset)
  )
  config = SourceConfig(dataset, str(folder))
  return open_source(config, "train").index


def test_relabelled_bridge_moves_to_the_state_that_was_reached(tmp_path):
  episode = tiny_datasets.bridge_episode(0, length=4)
  state = np.zeros((4, 7), np.float32)
  state[:, 0] = [0.1, 0.12, 0.11, 0.15]
  state[:, 5] = [3.1, -3.1, -3.0, -3.0]  # yaw passes through pi
  episode["steps/observation/state"] = state.ravel().tolist()
  episode["steps/action"][6::7] = [1.0, 1.0, 0.0, 0.0]
  index = canonical(tmp_path, "bridge_dataset_relabelled", episode)
  assert len(index) == 3  # the last step has no next one
  np.testing.assert_allclose(index.action[:, 1], [0.02, -0.01, 0.04], atol=1e-6)
  np.testing.assert_allclose(
    index.action[:, 6], [2 * np.pi - 6.2, 0.1, 0.0], atol=1e-5
  )
  np.testing.assert_array_equal(index.action[:, 0], [0, 0, 1])
  np.testing.assert_array_equal(index.action[:, 7], [1, 1, 0])


def test_open_x_bridge(tmp_path):
  index = canonical(
    tmp_path,
    "bridge",
    {
      "steps/is_first": [1, 0],
      "steps/action/world_vector": [0.01, 0.02, 0.03, 0.0, 0.0, -0.5],
      "steps/action/rotation_delta": [0.1, 0.2, 0.3, 0.0, 0.0, 0.0],
      "steps/action/open_gripper": [1, 0],
      "steps/action/terminate_episode": [0.0, 1.0],
      "steps/observation/natural_language_instruction": [b"open drawer"] * 2,
    },
  )
  np.testing.assert_allclose(
    index.action,
    [[0, 0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 1], [1, 0, 0, -0.5, 0, 0, 0, 0]],
    atol=1e-6,
  )


def test_language_table_decodes_its_instruction(tmp_path):
  text = "push the blue cube to the café"
  codes = list(text.encode()) + [0] * (512 - len(text.encode()))
  index = canonical(
    tmp_path,
    "language_table",
    {
      "steps/is_first": [1, 0],
      "steps/action": [0.01, -0.02, 0.0, 0.1],
      "steps/observation/instruction": codes * 2,
    },
  )
  assert index.texts == (text,)
  np.testing.assert_allclose(index.action, [[0.01, -0.02], [0, 0.1]])


def test_libero_in_metres_with_an_open_gripper_of_1(tmp_path):
  index = canonical(
    tmp_path,
    "libero",
    {
      "steps/is_first": [1, 0],
      "steps/is_last": [0, 1],
      "steps/action": [1.0, -1.0, 0.5, 0.2, 0, 0, -1.0, 0, 0, 0, 0, 0, 0, 1.0],
      "steps/language_instruction": [b"put the bowl on the stove"] * 2,
    },
  )
  np.testing.assert_allclose(
    index.action,
    [[0, 0.05, -0.05, 0.025, 0.1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0]],
    atol=1e-6,
  )


def record_of(dataset, **changed):
  """Features of two steps that a dataset's function reads, some changed."""
  texts = [b"go"] * 2
  narrow = {
    "is_first": [1, 0],
    "is_last": [0, 1],
    "language_instruction": texts,
  }
  language = "observation/natural_language_instruction"
  vectors = {"action/world_vector": 3, "action/rotation_delta": 3}
  vectors = {name: [0.0] * n * 2 for name, n in vectors.items()}
  features = {
    "fractal20220817_data": vectors
    | {"action/terminate_episode": [0, 1, 0, 1, 0, 0]}
    | {"action/gripper_closedness_action": [0.0, 1.0], language: texts},
    "bridge": vectors
    | {"action/terminate_episode": [0.0, 1.0], "action/open_gripper": [1, 0]}
    | {language: texts},
    "bridge_dataset": {"action": [0.0] * 14},
    "bridge_dataset_relabelled": {"action": [0.0] * 14}
    | {"observation/state": [0.0] * 14},
    "language_table": {"action": [0.0] * 4}
    | {"observation/instruction": [104, 105] * 2},
    "libero": {"action": [0.0] * 14},
    "tabletop": {"action": [0.0] * 16},
    "tabletop_with_plan": {"action": [0.0] * 16}
    | {"target_box": [0.0] * 8, "reference_box": [0.0] * 8},
  }[dataset]
  features = {f"steps/{k}": v for k, v in (narrow | features | changed).items()}
  if dataset == "tabletop_with_plan":
    features["episode_metadata/target"] = [b"apple"]
    features["episode_metadata/reference"] = [b""]
  return features


ACTION = "got {} numbers in each step of 'action', expected {}"


@pytest.mark.parametrize(
  ("dataset", "name", "values", "message"),
  [
    ("bridge_dataset", "action", [0.0] * 20, ACTION.format(10, 7)),
    ("bridge_dataset", "action", [0.0] * 12, ACTION.format(6, 7)),
    ("bridge_dataset_relabelled", "action", [0.0] * 20, ACTION.format(10, 7)),
    ("libero", "action", [0.0] * 16, ACTION.format(8, 7)),
    ("tabletop", "action", [0.0] * 14, ACTION.format(7, 8)),
    ("tabletop_with_plan", "action", [0.0] * 18, ACTION.format(9, 8)),
    ("language_table", "action", [0.0] * 14, ACTION.format(7, 2)),
    ("bridge_dataset", "action", [b"0"] * 14, "got no number in 'action'"),
    (
      "bridge_dataset_relabelled",
      "observation/state",
      [0.0] * 16,
      "got 8 numbers in each step of 'observation/state', expected 7",
    ),
    ("bridge", "action/terminate_episode", [0] * 6, "got 3 numb.*expected 1"),
    (
      "bridge",
      "action/open_gripper",
      [2, 0],
      "got 2 in step 0 .*expected 0 to",
    ),
    ("bridge_dataset", "is_last", [0, 1] * 2, "got 2 numbers in.*expected 1"),
    ("bridge_dataset", "action", [0.0] * 13 + [80.0], "got 80 in step 1 of 'a"),
    ("libero", "action", [50.0] + [0.0] * 13, "got 50 in step 0 .*-1 to 1"),
    ("tabletop", "action", [3.0] + [0.0] * 15, "got 3 in step 0 .* 0 to 1"),
    ("tabletop_with_plan", "target_box", [9.0] * 8, "got 9 in step 0 .* 0 to"),
    ("fractal20220817_data", "action/terminate_episode", [0] * 2, "expected 3"),
    (
      "fractal20220817_data",
      "action/terminate_episode",
      [0, 2, 0, 1, 0, 0],
      "got 2 in step 0 of 'action/terminate_episode', expected 0 to 1",
    ),
    ("fractal20220817_data", "action/world_vector", [0.0] * 4, "expected 3"),
    (
      "fractal20220817_data",
      "action/gripper_closedness_action",
      [-5.0, 0.0],
      "got -5 in step 0 .*expected -1 to 1",
    ),
    ("language_table", "observation/instruction", [300] * 4, "got 300 in step"),
    ("language_table", "observation/instruction", [255] * 4, "are not UTF-8"),
  ],
)
def test_features_of_another_dataset_are_refused(
  tmp_path, dataset, name, values, message
):
  canonical(tmp_path / "good", dataset, record_of(dataset))
  with pytest.raises(
    ValueError, match=rf"{tmp_path}.*, byte \d+, episode 0: got .*{message[4:]}"
  ):
    canonical(tmp_path / "bad", dataset, record_of(dataset, **{name: values}))


def test_a_plan_names_things_and_where_they_are(tmp_path):
  """One episode with a reference, one without, in a shard each."""
  corner, moved = (0.0, 0.0, 0.1, 0.1), (0.4, 0.55, 0.5, 0.65)
  end = (0.9, 0.98, 1.0, 1.0)
  episodes = [
    tiny_datasets.tabletop_episode("apple", [corner, moved]),
    tiny_datasets.tabletop_episode(
      "cat", [moved, corner], "red heart", [end, end]
    ),
  ]
  folder = tiny_datasets.write(tmp_path, episodes, "tabletop", num_shards=2)
  config = SourceConfig("tabletop_with_plan", str(folder))
  source = open_source(config, "train")
  # Sixteen places in each direction, y first; the middle of the place.
  assert [source.plan(i) for i in range(4)] == [
    "apple <loc0032><loc0032>",
    "apple <loc0480><loc0608>",
    "cat <loc0480><loc0608>, red heart <loc0992><loc0992>",
    "cat <loc0032><loc0032>, red heart <loc0992><loc0992>",
  ]
  assert source.index.plan.dtype == np.uint32
  assert source.instruction(3) == "pick up the cat"
  silent = SourceConfig("tabletop", str(folder))
  silent = open_source(silent, "train")
  assert silent.plan(3) == "" and silent.index.plan.nbytes == 0


def test_fractals_format_as_tfds_writes_it(tmp_path):
  make_rt1_episodes.make(
    str(tmp_path), train_episodes=2, val_episodes=1, seed=3
  )
  config = SourceConfig(
    "fractal20220817_data", str(tmp_path / "fractal20220817_data/0.1.0")
  )
  source = open_source(config, "train")
  assert len(source.index.texts) in (1, 2)
  for episode in range(2):
    action = source.index.action[source.index.episode == episode]
    np.testing.assert_array_equal(action[:-1, 0], 0)
    assert action[-1, 0] == 1.0  # terminate
    assert np.abs(action[:, 1:4]).max() <= 0.081  # metres
    assert set(action[:, 7]) <= {0.0, 1.0}
  seen = [source.storage.read(source.requests([i])[0]) for i in range(4)]
  images = np.stack([decode(*each) for each in seen])
  assert images.shape == (4, 256, 320, 3) and images.dtype == np.uint8
  assert len({source.instruction(i) for i in range(4)}) == 1


@pytest.mark.skipif(
  not pathlib.Path(_BRIDGE).is_dir(), reason="needs the Bridge debug episodes"
)
def test_the_real_bridge_episodes():
  config = SourceConfig("bridge_dataset", str(_BRIDGE))
  index = open_source(config, "train").index
  assert len(index) == 250 and index.episode.max() == 24
  assert len(index.texts) == 4
  # Extremes as published with the data.
  np.testing.assert_allclose(
    index.action[:, 1:7].min(0),
    [-0.019, -0.0293, -0.0205, -0.1596, -0.1174, -0.2543],
    atol=1e-4,
  )
  assert not index.action[:, 0].any()  # cut episodes: no is_last, no terminate


def test_an_unknown_dataset_lists_the_known_ones():
  with pytest.raises(
    ValueError, match="'bridg' for dataset, expected one of: fractal.*bridge_"
  ):
    SourceConfig("bridg", "x").space  # noqa: B018


def test_an_unknown_dimension_in_bounds():
  config = SourceConfig("bridge_dataset", "x", bounds={"z": (0, 1)})
  with pytest.raises(ValueError, match="got 'z' for dimension of action space"):
    config.space  # noqa: B018


FRACTAL = str(ROOT / "data/stats/fractal20220817_data.json")


def test_bounds_may_come_from_statistics():
  config = SourceConfig(
    "fractal20220817_data", "x", bounds="q01_q99", statistics=FRACTAL
  )
  dx, droll = config.space.dimensions[1], config.space.dimensions[4]
  assert (dx.low, dx.high) == (-0.224535, 0.178247)
  assert (droll.low, droll.high) == (-0.351799, 0.589267)
  assert config.read_statistics()["num_steps"] == 3_786_400
  assert SourceConfig("bridge_dataset", "x").read_statistics() == {}


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"statistics": FRACTAL},
      "statistics '.*' of dataset 'fractal20220817_data', expected those of "
      "'bridge_dataset'; run data/compute_stats.py for it",
    ),
    (
      {"statistics": "nowhere.json"},
      "statistics 'nowhere.json', which cannot be read .* expected a file that",
    ),
    (
      {"statistics": str(ROOT / "README.md")},
      "README.md', which cannot be read .* expected a file that",
    ),
    ({}, "got bounds 'q01_q99' for 'bridge_dataset' without statistics"),
    ({"bounds": "q1_q99"}, "'q1_q99' for bounds.* did you mean 'q01_q99'"),
  ],
)
def test_statistics_that_do_not_fit_are_named(fields, message):
  fields = {"bounds": "q01_q99"} | fields
  with pytest.raises(ValueError, match=message):
    _ = SourceConfig("bridge_dataset", "x", **fields).space

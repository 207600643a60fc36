"""The index of steps, and random access through it."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from rt2_jax.action_spaces import RT2
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import datasets
from rt2_jax.input_pipeline.episodes import Canonical
from rt2_jax.input_pipeline.rlds import RobotState
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.input_pipeline.step_index import StepSource
from rt2_jax.observation import ONE_CAMERA, ObservationSpec
from tests import tiny_datasets


@pytest.fixture
def source(tmp_path):
  config = tiny_datasets.bridge_source(tmp_path)
  return open_source(config, "train")


def test_every_step_is_found(source):
  assert len(source) == 20
  for i in range(20):
    (image,) = source.storage.read(source.requests([i])[0])
    assert image == tiny_datasets.jpeg(i // 5 * 1000 + i % 5)
    assert source.instruction(i) == "put carrot on plate"
    assert str(source.requests([i])[0][0].offset) in source.location(i)


def test_a_step_takes_60_bytes_and_an_episode_12(source):
  index = source.index
  assert index.nbytes == 60 * len(index) + 12 * 4


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_largest_image_is_known_in_any_order(tmp_path, order):
  """From headers: neither the first image nor the last decides."""
  sizes = (64, 64), (96, 40), (48, 128)
  episodes = [tiny_datasets.bridge_episode(i, length=3) for i in range(2)]
  images = [tiny_datasets.jpeg(i, *sizes[i]) for i in order]
  episodes[1]["steps/observation/image_0"] = images
  tiny_datasets.write(tmp_path, episodes, num_shards=2)
  config = SourceConfig("bridge_dataset", str(tmp_path))
  open_kept = lambda: open_source(  # noqa: E731
    config, "train", index_folder=str(tmp_path / "index")
  )
  source = open_kept()
  assert source.largest_image == (96, 128)
  kept = open_kept()
  assert kept.largest_image == (96, 128)


def test_frames_stay_inside_their_episode(source):
  pairs = StepSource(source.storage, source.index, RT2, history=2)
  single = [source.requests([i])[0][0] for i in range(20)]
  for i in range(20):
    before = i if i % 5 == 0 else i - 1
    assert pairs.requests([i])[0] == [single[before], single[i]]


def test_a_nan_action_names_file_episode_and_step(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(2)]
  episodes[1]["steps/action"][3 * 7 + 2] = float("nan")
  tiny_datasets.write(tmp_path, episodes)
  config = SourceConfig("bridge_dataset", str(tmp_path))
  with pytest.raises(
    ValueError,
    match=r"got 5 .*tfrecord-0.*, byte \d+, episode 1: got nan in step 3, "
    "number 2 of 'action', expected a finite number",
  ):
    open_source(config, "train")


def test_a_changed_image_is_named_when_it_is_read(source):
  """A flipped bit that still decodes, long after the index was made."""
  first, second = source.requests([6])[0][0], source.requests([7])[0][0]
  data = bytearray(pathlib.Path(first.path).read_bytes())
  data[first.offset + first.length // 2] ^= 16
  pathlib.Path(first.path).write_bytes(data)
  with pytest.raises(
    ValueError,
    match=rf"{first.path}, byte {first.offset}: got {first.length} bytes with "
    r"checksum \w{8}, expected \w{8}; the shard changed after it was indexed",
  ):
    source.storage.read([first])
  (image,) = source.storage.read([second])
  assert image == tiny_datasets.jpeg(1002)


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
  source = open_source(tiny_datasets.bridge_source(tmp_path), "train")
  with open(source.index.files[0], "r+b") as file:
    file.truncate(int(source.index.offset[7, 0]) + 10)
  with pytest.raises(
    ValueError, match=r"got 10 bytes, expected \d+; the shard"
  ):
    source.storage.read(source.requests([7])[0])


def test_an_image_for_each_step_is_needed(tmp_path):
  episode = tiny_datasets.bridge_episode(0)
  del episode["steps/observation/image_0"][1]
  tiny_datasets.write(tmp_path, [episode])
  config = SourceConfig("bridge_dataset", str(tmp_path))
  with pytest.raises(ValueError, match="got 4 images .* expected 5, one for e"):
    open_source(config, "train")


def index_with(tmp_path, monkeypatch, space, standardize, **filters):
  """A dataset of one episode that another function reads."""
  known = datasets.RobotDataset(
    space, {"primary": "observation/image_0"}, standardize
  )
  monkeypatch.setitem(datasets.DATASETS, "mine", known)
  tiny_datasets.write(tmp_path, [tiny_datasets.bridge_episode(0, length=6)])
  config = SourceConfig("mine", str(tmp_path), filters=filters)
  return open_source(config, "train")


def test_a_function_names_the_steps_that_it_keeps(tmp_path, monkeypatch):
  def every_second(episode):
    steps = np.arange(episode.length)[1::2]
    action = np.zeros((3, 8), np.float32)
    action[:, 1] = episode["action"][1::2, 0]
    return Canonical(
      episode.texts("language_instruction")[1::2], action
    )._replace(steps=steps)

  source = index_with(tmp_path, monkeypatch, RT2, every_second)
  shown = [source.storage.read(source.requests([i])[0])[0] for i in range(3)]
  assert shown == [tiny_datasets.jpeg(t) for t in (1, 3, 5)]
  whole = np.reshape(
    tiny_datasets.bridge_episode(0, length=6)["steps/action"], (6, 7)
  )
  np.testing.assert_allclose(source.index.action[:, 1], whole[1::2, 0])


@pytest.mark.parametrize(
  "fields",
  [
    {"instruction": ["go"] * 5},
    {"instruction": ["go"] * 5, "action": np.zeros((5, 8))},
    {"action": np.zeros((6, 7))},
    {"action": np.zeros(48)},
    {"plan": ["a"] * 3},
    {"instruction": "go now"},  # six characters, one for each step
    {"instruction": [b"go"] * 6},
    {"plan": "reach "},
    {"steps": [0, 1, 2]},
    {"steps": [True] * 6},
    {"steps": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]},
    {"steps": [[0, 1, 2, 3, 4, 5]]},
    {"steps": [0, 1, 2, 3, 4, 6]},
    {"steps": [-1, 0, 1, 2, 3, 4]},
    {"steps": [0, 1, 2, 2, 4, 5]},
    {"steps": [5, 4, 3, 2, 1, 0]},
  ],
)
def test_a_function_that_contradicts_itself_is_refused(
  tmp_path, monkeypatch, fields
):
  whole = Canonical(["go"] * 6, np.zeros((6, 8), np.float32))
  function = lambda episode: whole._replace(**fields)  # noqa: E731
  with pytest.raises(
    ValueError, match="episode 0: got .*from the dataset's fu"
  ):
    index_with(tmp_path, monkeypatch, RT2, function)
  assert len(index_with(tmp_path, monkeypatch, RT2, lambda episode: whole)) == 6


def spoil(episode, name, at, value):
  episode[name] = [*episode[name]]
  episode[name][at : at + 1] = value


@pytest.mark.parametrize(
  ("spoiled", "message"),
  [
    (("action", 9, [float("nan")]), r"got nan in step 1, number 2 of 'action'"),
    (("action", 6, [float("inf")]), r"got inf in step 0, number 6 of 'action'"),
    (("action", 6, [1.5]), "got 1.5 in step 0 of 'action', expected 0 to 1"),
    (("action", 0, []), "got 34 numbers in 'action', expected a multiple of"),
    (("language_instruction", 2, [b"\xff"]), "'.*instruction' that is not UTF"),
    (("language_instruction", 2, []), "got 4 texts in 'language_instruction'"),
    (("observation/image_0", 2, []), "got 4 images .* expected 5, one for eac"),
    (("observation/image_0", 0, [b"x"] * 2), "got 6 images .* expected 5, one"),
    (("is_last", 4, []), "got 4 numbers in 'is_last', expected a multiple of"),
    (("is_last", 1, [7]), "got 7 in step 1 of 'is_last', expected 0 to 1"),
  ],
)
def test_a_damaged_episode_is_named_and_may_be_left_out(
  tmp_path, spoiled, message
):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(3)]
  spoil(episodes[1], f"steps/{spoiled[0]}", *spoiled[1:])
  tiny_datasets.write(tmp_path, episodes)
  config = SourceConfig("bridge_dataset", str(tmp_path))
  with pytest.raises(
    ValueError,
    match=rf"got 5 ex.* = 4: {tmp_path}/.*-00001, byte \d+(, episode 1)?: got",
  ):
    open_source(config, "train", max_skipped=4)
  index = open_source(config, "train", max_skipped=5).index
  assert len(index) == 10 and index.episode.max() == 1
  (lost,) = index.damaged
  assert re.search(message, lost.problem) and lost.examples == 5


def test_an_episode_without_a_feature_may_be_left_out(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(3)]
  del episodes[0]["steps/is_last"]
  del episodes[2]["steps/is_first"]  # nobody knows how many steps it has
  tiny_datasets.write(tmp_path, episodes)
  config = SourceConfig("bridge_dataset", str(tmp_path))
  with pytest.raises(ValueError, match="got 6 examples"):
    open_source(config, "train", max_skipped=5)
  index = open_source(config, "train", max_skipped=6).index
  assert len(index) == 5 and [loss.examples for loss in index.damaged] == [5, 1]


def test_an_episode_without_steps_has_none(tmp_path):
  empty = {name: [] for name in tiny_datasets.bridge_episode(0)}
  one = tiny_datasets.bridge_episode(3, length=1)
  episodes = [empty, tiny_datasets.bridge_episode(1), empty, one, empty]
  tiny_datasets.write(tmp_path, episodes)
  config = SourceConfig("bridge_dataset", str(tmp_path))
  source = open_source(config, "train", ObservationSpec(history=2))
  assert len(source) == 6 and not source.index.damaged
  first = tiny_datasets.jpeg(3000)
  assert source.storage.read(source.requests([5])[0]) == [first, first]
  np.testing.assert_array_equal(source.index.episode, [0] * 5 + [1])
  tiny_datasets.write(tmp_path, [empty])
  with pytest.raises(ValueError, match="got no step in split 'train'"):
    open_source(config, "train")
  for marks in [], [b"1"] * 5:  # the images say that there are steps
    unmarked = tiny_datasets.bridge_episode(0) | {"steps/is_first": marks}
    tiny_datasets.write(tmp_path, [tiny_datasets.bridge_episode(1), unmarked])
    with pytest.raises(ValueError, match="episode 1: got 5 .*expected 0"):
      open_source(config, "train")
    assert len(open_source(config, "train", max_skipped=1)) == 5


@pytest.mark.parametrize(
  ("state", "got"),
  [
    (np.zeros((5, 1)), r"states \[5, 1\] .*expected \[6, 1\]"),
    (np.zeros(6), r"states \[6\] .*expected \[6, 1\]"),
    ([[0], [1], [np.nan], [3], [4], [5]], "got nan for 'x' .*in step 2"),
  ],
)
def test_states_that_do_not_fit_their_episode(
  tmp_path, monkeypatch, state, got
):
  space = ActionSpace("arm", "base", (Dimension("x", "m"),))
  known = dataclasses.replace(
    datasets.DATASETS["bridge_dataset"],
    state=RobotState(space, lambda episode: state),
  )
  monkeypatch.setitem(datasets.DATASETS, "mine", known)
  tiny_datasets.write(tmp_path, [tiny_datasets.bridge_episode(0, length=6)])
  config = SourceConfig("mine", str(tmp_path))
  spec = config.observation_spec(ONE_CAMERA, True)
  with pytest.raises(UserError, match=got):
    open_source(config, "train", spec)
  assert open_source(config, "train").index.state.shape == (6, 0)

"""The index of steps, and random access through it."""

import numpy as np
import pytest

from rt2_jax.input_pipeline import datasets
from rt2_jax.input_pipeline.rlds import StepSource
from tests import tiny_datasets


@pytest.fixture
def source(tmp_path):
  config = tiny_datasets.bridge_source(tmp_path)
  return datasets.open_source(config, "train")


def test_every_step_is_found(source):
  assert len(source) == 20
  for i in range(20):
    (image,) = source.storage.read(source.requests(i))
    assert image == tiny_datasets.jpeg(i // 5 * 1000 + i % 5)
    assert source.instruction(i) == "put carrot on plate"
    assert str(source.requests(i)[0].offset) in source.location(i)


def test_a_step_takes_54_bytes(source):
  index = source.index
  assert index.nbytes == 54 * len(index) + 4 * 4  # an episode's image size


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_largest_image_is_known_in_any_order(tmp_path, order):
  """From headers: neither the first image nor the last decides."""
  sizes = (64, 64), (96, 40), (48, 128)
  episodes = [tiny_datasets.bridge_episode(i, length=3) for i in range(2)]
  images = [tiny_datasets.jpeg(i, *sizes[i]) for i in order]
  episodes[1]["steps/observation/image_0"] = images
  tiny_datasets.write(tmp_path, episodes, num_shards=2)
  config = datasets.SourceConfig("bridge_dataset", str(tmp_path))
  source = datasets.open_source(config, "train", 1, str(tmp_path / "index"))
  assert source.largest_image == (96, 128)
  kept = datasets.open_source(config, "train", 1, str(tmp_path / "index"))
  assert kept.largest_image == (96, 128)


def test_frames_stay_inside_their_episode(source):
  pairs = StepSource(source.storage, source.index, num_frames=2)
  single = [source.requests(i)[0] for i in range(20)]
  for i in range(20):
    before = i if i % 5 == 0 else i - 1
    assert pairs.requests(i) == [single[before], single[i]]


def test_a_nan_action_names_file_episode_and_step(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(2)]
  episodes[1]["steps/action"][3 * 7 + 2] = float("nan")
  tiny_datasets.write(tmp_path, episodes)
  config = datasets.SourceConfig("bridge_dataset", str(tmp_path))
  with pytest.raises(
    ValueError,
    match=r"tfrecord-0.*: got nan for action dimension 'dz' in step 3 of episo"
    r"de 1",
  ):
    datasets.open_source(config, "train")


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
  source = datasets.open_source(tiny_datasets.bridge_source(tmp_path), "train")
  with open(source.index.files[0], "r+b") as file:
    file.truncate(int(source.index.offset[7]) + 10)
  with pytest.raises(
    ValueError, match=r"got 10 bytes, expected \d+; the shard"
  ):
    source.storage.read(source.requests(7))


def test_an_image_for_each_step_is_needed(tmp_path):
  episode = tiny_datasets.bridge_episode(0)
  del episode["steps/observation/image_0"][1]
  tiny_datasets.write(tmp_path, [episode])
  config = datasets.SourceConfig("bridge_dataset", str(tmp_path))
  with pytest.raises(ValueError, match="got 4 images .* expected 5, one for e"):
    datasets.open_source(config, "train")


def filtered(tmp_path, filters, episodes):
  tiny_datasets.write(tmp_path, episodes)
  config = datasets.SourceConfig(
    "bridge_dataset", str(tmp_path), filters=filters
  )
  return datasets.open_source(config, "train").index


def test_episodes_are_filtered_by_their_features(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(3)]
  for i, episode in enumerate(episodes):
    episode["aspects/success"] = [int(i != 1)]
    episode["attributes/env_name"] = [b"kitchen" if i < 2 else b"office"]
  index = filtered(
    tmp_path / "a", {"episodes": {"aspects/success": True}}, episodes
  )
  assert len(index) == 10 and index.episode.max() == 1
  index = filtered(
    tmp_path / "b", {"episodes": {"attributes/env_name": "office"}}, episodes
  )
  assert len(index) == 5
  with pytest.raises(
    ValueError, match="got no step in split 'train' of .*rela"
  ):
    filtered(
      tmp_path / "c", {"episodes": {"attributes/env_name": "lab"}}, episodes
    )


def test_steps_that_change_nothing_are_dropped(tmp_path):
  episode = tiny_datasets.bridge_episode(0)
  action = np.reshape(episode["steps/action"], (5, 7))
  action[:, 6] = [1, 1, 0, 0, 0]
  action[1:4, :6] = 0.0  # 1: still; 2: still, but closes; 3: still
  episode["steps/action"] = action.ravel().tolist()
  index = filtered(tmp_path, {"drop_noops": True}, [episode])
  np.testing.assert_allclose(index.action[:, 1:7], action[[0, 2, 4], :6])
  assert index.action[-1, 0] == 1.0


def test_the_plans_of_kept_steps_are_kept(tmp_path):
  boxes = [(y, 0.0, y, 0.1) for y in (0.0, 0.3, 0.6)]
  episode = tiny_datasets.tabletop_episode("apple", boxes)
  episode["steps/action"][8 * 2 + 7] = 1.0  # 1: nothing; 2: opens
  tiny_datasets.write(tmp_path, [episode])
  config = datasets.SourceConfig(
    "tabletop_with_plan", str(tmp_path), filters={"drop_noops": True}
  )
  source = datasets.open_source(config, "train")
  assert len(source) == 1
  assert source.plan(0) == "apple <loc0608><loc0032>"

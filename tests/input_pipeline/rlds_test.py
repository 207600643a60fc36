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
    step = source.read(i)
    assert step.images == (tiny_datasets.jpeg(i // 5 * 1000 + i % 5),)
    assert step.instruction == "put carrot on plate"
    np.testing.assert_array_equal(step.action, source.index.action[i])


def test_a_step_takes_54_bytes(source):
  index = source.index
  columns = (index.file, index.offset, index.length, index.episode, index.text)
  per_step = sum(c.itemsize for c in columns) + index.action[0].nbytes
  assert per_step == 54


def test_frames_stay_inside_their_episode(source):
  pairs = StepSource(source.index, num_frames=2)
  single = [source.read(i).images[0] for i in range(20)]
  for i in range(20):
    before = i if i % 5 == 0 else i - 1
    assert pairs.read(i).images == (single[before], single[i])


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
  path = source.index.files[0]
  with path.open("r+b") as file:
    file.truncate(int(source.index.offset[7]) + 10)
  with pytest.raises(ValueError, match="got 10 bytes of an image, expected"):
    source.read(7)


def test_an_image_for_each_step_is_needed(tmp_path):
  episode = tiny_datasets.bridge_episode(0)
  del episode["steps/observation/image_0"][1]
  tiny_datasets.write(tmp_path, [episode])
  config = datasets.SourceConfig("bridge_dataset", str(tmp_path))
  with pytest.raises(ValueError, match="got 4 images .* expected 5, one for e"):
    datasets.open_source(config, "train")

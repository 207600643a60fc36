"""TFRecord files, whole and broken, against TensorFlow's own parser."""

import numpy as np
import pytest
import tensorflow as tf

from rt2_jax.input_pipeline import records
from tests import tiny_datasets


@pytest.fixture
def folder(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(3)]
  return tiny_datasets.write(tmp_path / "1.0.0", episodes, num_shards=2)


def test_features_equal_tensorflows(folder):
  for path in records.find_shards(folder, "train"):
    raw = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    for record, data in zip(records.read_records(path), raw, strict=True):
      feature = tf.train.Example.FromString(data).features.feature
      assert record.names == sorted(feature)
      np.testing.assert_array_equal(
        record.numbers("steps/action"), feature["steps/action"].float_list.value
      )
      np.testing.assert_array_equal(
        record.numbers("steps/is_last"),
        feature["steps/is_last"].int64_list.value,
      )
      whole = path.read_bytes()
      images = [
        whole[offset : offset + length]
        for offset, length in record.byte_spans("steps/observation/image_0")
      ]
      assert images == list(
        feature["steps/observation/image_0"].bytes_list.value
      )


def test_negative_and_large_integers(tmp_path):
  numbers = [0, -1, 127, 128, 2**40, -(2**40)]
  folder = tiny_datasets.write(tmp_path, [{"n": numbers}])
  (path,) = records.find_shards(folder, "train")
  (record,) = records.read_records(path)
  np.testing.assert_array_equal(record.numbers("n"), numbers)


def test_a_missing_shard_is_named(folder):
  records.find_shards(folder, "train")[1].unlink()
  with pytest.raises(
    ValueError, match="got 1 of 2 TFRecord .*missing: 00001-of-00002"
  ):
    records.find_shards(folder, "train")


def test_a_missing_dataset_or_split_is_named(folder):
  with pytest.raises(ValueError, match=r"no_such', which holds no dataset_inf"):
    records.find_shards(folder / "no_such", "train")
  with pytest.raises(ValueError, match="got split 'test', expected one of tra"):
    records.find_shards(folder, "test")


@pytest.mark.parametrize("keep", [-1, -5000, 5, 13])
def test_a_truncated_shard_is_named_with_its_place(folder, keep):
  path = records.find_shards(folder, "train")[0]
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(
    ValueError,
    match=r"tfrecord-00000-of-00002: got a TFRecord file that ends inside the "
    r"record at byte \d+, expected \d+ bytes more",
  ):
    list(records.read_records(path))


def test_an_empty_shard_is_refused(folder):
  path = records.find_shards(folder, "train")[0]
  path.write_bytes(b"")
  with pytest.raises(ValueError, match="got an empty TFRecord file"):
    list(records.read_records(path))


def test_another_kind_of_file_is_refused(folder):
  path = records.find_shards(folder, "train")[0]
  path.write_bytes(b"PK\x03\x04" + bytes(range(200)))
  with pytest.raises(ValueError, match="corrupt record length at byte 0"):
    list(records.read_records(path))


def test_a_missing_feature_lists_those_there(folder):
  path = records.find_shards(folder, "train")[0]
  record = next(records.read_records(path))
  with pytest.raises(
    ValueError, match="without the feature 'steps/reward'; it has steps/action"
  ):
    record.numbers("steps/reward")

"""TFRecord files, whole and broken, against TensorFlow's own parser."""

import gzip
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from rt2_jax.byte_ranges import LocalStorage
from rt2_jax.input_pipeline import records, splits
from tests import tiny_datasets

STORAGE = LocalStorage()


def find_shards(folder, split):
  found = splits.find_split(STORAGE, str(folder), split).shards
  return [pathlib.Path(shard.path) for shard in found]


def read_records(path):
  return records.read_records(STORAGE, str(path))


@pytest.fixture
def folder(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(3)]
  return tiny_datasets.write(tmp_path / "1.0.0", episodes, num_shards=2)


def test_features_equal_tensorflows(folder):
  for path in find_shards(folder, "train"):
    raw = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    for record, data in zip(read_records(path), raw, strict=True):
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
  (path,) = find_shards(folder, "train")
  (record,) = read_records(path)
  np.testing.assert_array_equal(record.numbers("n"), numbers)


@pytest.mark.parametrize("keep", [-1, -5000, 5, 13])
def test_a_truncated_shard_is_named_with_its_place(folder, keep):
  path = find_shards(folder, "train")[0]
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(
    ValueError,
    match=r"tfrecord-00000-of-00002: got a TFRecord file that ends inside the "
    r"record at byte \d+, expected at least \d+ bytes more; copy the shard aga",
  ):
    list(read_records(path))


def test_an_empty_shard_is_refused(folder):
  path = find_shards(folder, "train")[0]
  path.write_bytes(b"")
  with pytest.raises(ValueError, match="got an empty TFRecord file"):
    list(read_records(path))


def test_another_kind_of_file_is_refused(folder):
  path = find_shards(folder, "train")[0]
  path.write_bytes(b"PK\x03\x04" + bytes(range(200)))
  with pytest.raises(ValueError, match="corrupt record length at byte 0"):
    list(read_records(path))


def test_a_missing_feature_lists_those_there(folder):
  path = find_shards(folder, "train")[0]
  record = next(read_records(path))
  with pytest.raises(
    ValueError, match="without the feature 'steps/reward'; it has steps/action"
  ):
    record.numbers("steps/reward")


def test_damaged_data_is_found_by_its_checksum(folder):
  path = find_shards(folder, "train")[0]
  first, second = read_records(path)
  data = bytearray(path.read_bytes())
  data[3000] ^= 1
  path.write_bytes(data)
  with pytest.raises(
    ValueError, match=r"got a record at byte 12 whose checksum is wrong; copy"
  ):
    list(read_records(path))
  damaged = []
  (found,) = records.read_records(STORAGE, str(path), damaged)
  assert found.offset == second.offset and found.names == first.names
  (lost,) = damaged
  assert lost.problem.startswith(f"{path}: got a record at")
  assert (lost.record, lost.records) == (0, 1) and found.number == 1


@pytest.mark.parametrize("keep", [0, 13, -5])
def test_what_is_behind_a_break_is_listed_as_one(folder, keep):
  path = find_shards(folder, "train")[0]
  whole = path.read_bytes()
  path.write_bytes(whole[:keep])
  damaged = []
  found = list(records.read_records(STORAGE, str(path), damaged))
  assert len(found) == (keep < 0)
  (lost,) = damaged
  assert (lost.record, lost.records) == (len(found), 0)  # how many: unknown


def test_a_compressed_file_is_named(tmp_path):
  path = tmp_path / "x.tfrecord-00000-of-00001"
  path.write_bytes(gzip.compress(b"records"))
  with pytest.raises(ValueError, match="compressed with gzip.*unpack it with"):
    list(read_records(path))

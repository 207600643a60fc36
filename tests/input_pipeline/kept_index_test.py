"""Kept indexes: used again, built again, and refused when a shard changed."""

import dataclasses
import functools
import pathlib
import uuid

import numpy as np
import pytest

from rt2_jax.action_spaces import RT2
from rt2_jax.byte_ranges import LocalStorage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import index, kept_index, sources, splits
from rt2_jax.input_pipeline.sources import (
  SourceConfig,
  open_source,
)
from tests import tiny_datasets
from tests.small_indexes import (
  changed_dataset,
  damage,
  equal,
  open_index,
  times,
)


@pytest.fixture
def config(tmp_path):
  return tiny_datasets.bridge_source(tmp_path / "data", 6, num_shards=3)


def test_a_kept_index_is_the_same(config, tmp_path):
  fresh = open_source(config, "train").index
  built = open_index(config, tmp_path / "index")
  assert len(list((tmp_path / "index").glob("*.npz"))) == 3
  assert equal(fresh, built) and equal(
    open_index(config, tmp_path / "index"), built
  )
  assert fresh.episode.max() == 5 and fresh.file.max() == 2


def test_an_interrupted_build_goes_on(config, tmp_path, monkeypatch):
  folder = tmp_path / "index"
  whole = open_index(config, folder)
  kept = sorted(folder.glob("*.npz"))
  kept[1].unlink()
  (folder / "left.123.unfinished").write_bytes(b"half a file")
  read = []
  build = sources.index_shard

  @functools.wraps(build)  # the same function to those who name indexes
  def index_shard(storage, path, *rest):
    read.append(path)
    return build(storage, path, *rest)

  monkeypatch.setattr(sources, "index_shard", index_shard)
  assert equal(open_index(config, folder), whole)
  assert len(read) == 1 and "00001-of-00003" in read[0]


def test_other_filters_give_another_index(config, tmp_path):
  folder = tmp_path / "index"
  whole = open_index(config, folder)
  noops = SourceConfig(
    "bridge_dataset", config.path, filters={"drop_noops": True}
  )
  open_index(noops, folder)
  assert len(list(folder.glob("*.npz"))) == 6
  assert equal(open_index(config, folder), whole)


def test_filters_that_are_spelt_out_are_the_same_index(config, tmp_path):
  whole = open_index(config, tmp_path / "index")
  spelt = {"episodes": {}, "drop_noops": False}
  for filters in ({"drop_noops": False}, spelt):
    other = dataclasses.replace(config, filters=filters)
    assert equal(open_index(other, tmp_path / "index"), whole)
  assert len(list((tmp_path / "index").glob("*.npz"))) == 3


def test_a_folder_that_cannot_be_written_is_named(config, tmp_path):
  (tmp_path / "file").touch()
  for folder in (tmp_path / "file", tmp_path / "file" / "below"):
    with pytest.raises(UserError, match="got config.loader.index_folder = .*"):
      open_index(config, folder)


def test_a_shard_of_another_size_is_named(config, tmp_path):
  folder = tmp_path / "index"
  shard = open_index(config, folder).files[1]
  with open(shard, "ab") as file:
    file.write(b"more")
  with pytest.raises(
    ValueError,
    match=r"00001-of-00003: got a shard of \d+ bytes with fingerprint \w{8}, "
    r"expected the \d+ bytes with .* that was indexed; restore the shard, or "
    r"delete .*\.npz",
  ):
    open_index(config, folder)


def test_a_shard_that_is_a_copy_of_another_is_named(config, caplog):
  paths = sorted(pathlib.Path(config.path).glob("*.tfrecord-*"))
  assert len(open_index(config, None)) == 30 and not caplog.text
  paths[2].write_bytes(paths[0].read_bytes())
  assert len(open_index(config, None)) == 30
  (line,) = caplog.messages
  assert line.startswith(f"{paths[2]}: got the same ") and str(paths[0]) in line


@pytest.mark.parametrize("byte", [30, -1])
def test_another_shard_of_the_same_size_is_named(config, tmp_path, byte):
  folder = tmp_path / "index"
  open_index(config, folder)
  path = damage(config, 1, byte)
  with pytest.raises(ValueError, match=f"{path}: got a shard of .* expected"):
    open_index(config, folder)


def test_many_shards_are_identified_in_few_reads(config, monkeypatch):
  storage = LocalStorage()
  calls = []
  read = storage.read
  monkeypatch.setattr(
    storage, "read", lambda requests: calls.append(1) or read(requests)
  )
  shards = splits.find_split(storage, config.path, "train").shards
  files = [shard.path for shard in shards]
  found = list(kept_index._identify(storage, files * 40))
  assert found[:3] == found[3:6] and len(set(found)) == 3
  assert len(calls) == 2


def test_indexes_are_kept_in_an_object_store(config, monkeypatch):
  folder = f"memory://{uuid.uuid4().hex}/index"
  built = open_index(config, folder)
  monkeypatch.setattr(index, "_build", None)  # nothing is built again
  again = open_index(config, folder)
  np.testing.assert_array_equal(again.checksum, built.checksum)


@pytest.mark.parametrize(
  ("first", "then", "said"),
  [
    ({}, {"standardize": times(-1)}, "dataset function"),
    ({"standardize": times(-1)}, {"standardize": times(2)}, "dataset function"),
    ({}, {"cameras": {"primary": "observation/image_1"}}, "cameras"),
    ({}, {"space": dataclasses.replace(RT2, frame="hand")}, "action space"),
  ],
)
def test_an_index_made_in_another_way_is_built_again(
  tmp_path, monkeypatch, caplog, first, then, said
):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(2)]
  for episode in episodes:
    images = [tiny_datasets.jpeg(t, 32, 48) for t in range(5)]
    episode["steps/observation/image_1"] = images
  folder = tiny_datasets.write(tmp_path / "data", episodes, num_shards=2)
  config = SourceConfig("bridge_dataset", str(folder))
  kept = tmp_path / "index"
  for fields in first, then:
    caplog.clear()
    changed_dataset(monkeypatch, **fields)
    fresh = open_source(config, "train").index
    assert equal(open_index(config, kept), fresh)
  (line,) = caplog.messages
  assert "builds 2 of 2 kept indexes" in line and str(kept) in line
  assert line.endswith(f"another {said}")
  caplog.clear()
  assert equal(open_index(config, kept), fresh) and not caplog.messages


def test_a_kept_index_that_is_cut_off_is_built_again(config, tmp_path, caplog):
  whole = open_index(config, tmp_path / "index")
  path = sorted((tmp_path / "index").glob("*.npz"))[1]
  for size in 0, 100, path.stat().st_size - 30:
    path.write_bytes(path.read_bytes()[:size])
    caplog.clear()
    assert equal(open_index(config, tmp_path / "index"), whole)
    assert "builds 1 of 3 kept indexes" in caplog.text


def test_a_repaired_shard_is_indexed_again(tmp_path):
  # Far from both ends, where a repair leaves no trace in the fingerprint.
  middle = kept_index._END + 100
  episode = tiny_datasets.bridge_episode(0, length=200)
  folder = tiny_datasets.write(tmp_path / "long", [episode])
  long = SourceConfig("bridge_dataset", str(folder))
  (path,) = folder.glob("*.tfrecord-*")
  good = path.read_bytes()
  assert len(good) > 2 * middle
  path.write_bytes(good[:middle] + b"damage" + good[middle + 6 :])
  with pytest.raises(
    ValueError, match=r"got no step in split 'train'.* checksum is wrong"
  ):
    open_index(long, tmp_path / "index", max_skipped=200)
  path.write_bytes(good)
  assert len(open_index(long, tmp_path / "index")) == 200

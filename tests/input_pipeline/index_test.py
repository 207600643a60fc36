"""Indexes of shards: kept, resumed, and refused when a shard changed.

Damage is an error, or left out and listed, as far as it is tolerated.
"""

import functools
import io
import pathlib
import sys

import numpy as np
import pytest

from rt2_jax.input_pipeline import datasets, index, records
from rt2_jax.input_pipeline.datasets import SourceConfig
from rt2_jax.input_pipeline.storage import LocalStorage
from tests import tiny_datasets


@pytest.fixture
def config(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(6)]
  folder = tiny_datasets.write(tmp_path / "data", episodes, num_shards=3)
  return SourceConfig("bridge_dataset", str(folder))


def open_index(config, folder, max_skipped=0):
  return datasets.open_source(
    config, "train", 1, str(folder), max_skipped=max_skipped
  ).index


def damage(config, shard: int, byte: int) -> str:
  """Changes one byte of a shard; returns its path."""
  (path,) = pathlib.Path(config.path).glob(f"*-0000{shard}-of-00003")
  data = bytearray(path.read_bytes())
  data[byte] ^= 1
  path.write_bytes(data)
  return str(path)


def equal(a, b) -> bool:
  columns = ("file", "offset", "length", "episode", "text", "plan", "action")
  return (a.texts, a.plans) == (b.texts, b.plans) and all(
    np.array_equal(getattr(a, c), getattr(b, c)) for c in columns
  )


def test_a_kept_index_is_the_same(config, tmp_path):
  fresh = datasets.open_source(config, "train").index
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
  build = datasets.index_shard

  @functools.wraps(build)  # the same function to those who name indexes
  def index_shard(storage, path, *rest):
    read.append(path)
    return build(storage, path, *rest)

  monkeypatch.setattr(datasets, "index_shard", index_shard)
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
  files = records.find_shards(storage, config.path, "train")
  found = list(index._identify(storage, files * 40))
  assert found[:3] == found[3:6] and len(set(found)) == 3
  assert len(calls) == 2


def test_a_folder_in_an_object_store_is_refused(config):
  with pytest.raises(
    ValueError, match="got config.loader.index_folder = 'gs://b/x', expected a "
  ):
    open_index(config, "gs://b/x")


DATA = 2000  # a byte of the first record's data in the middle of a shard


def test_damage_is_an_error_and_no_index_is_kept(config, tmp_path):
  path = damage(config, 1, DATA)
  with pytest.raises(
    ValueError,
    match="got 1 examples that cannot be used, expected at most "
    f"config.loader.max_skipped = 0: {path}: got a record at byte 12 whose ",
  ):
    open_index(config, tmp_path / "index")
  assert len(list((tmp_path / "index").glob("*.npz"))) == 1  # the one before


def test_tolerated_damage_is_left_out_and_listed(config, tmp_path):
  whole = datasets.open_source(config, "train").index
  path = damage(config, 1, DATA)
  built = open_index(config, tmp_path / "index", max_skipped=1)
  kept = open_index(config, tmp_path / "index", max_skipped=1)
  assert equal(built, kept) and built.damaged == kept.damaged
  (line,) = built.damaged
  assert line.startswith(f"{path}: got a record at byte 12 whose checksum is")
  others = np.flatnonzero(whole.episode != 2)  # two episodes in each shard
  np.testing.assert_array_equal(built.offset, whole.offset[others])
  np.testing.assert_array_equal(built.action, whole.action[others])


def test_behind_a_damaged_length_the_shard_is_lost(config, tmp_path):
  whole = datasets.open_source(config, "train").index
  damage(config, 1, 0)
  damage(config, 2, DATA)
  built = open_index(config, tmp_path / "index", max_skipped=2)
  assert len(built) == len(whole) - 2 * 5 - 5
  lost, one = built.damaged
  assert "a corrupt record length at byte 0, from where on all is lost" in lost
  assert "a record at byte 12 whose checksum is wrong" in one
  with pytest.raises(
    ValueError,
    match=r"got 2 examples .*max_skipped = 1: .*length.*; .*checksum",
  ):
    open_index(config, tmp_path / "other", max_skipped=1)


def test_a_repaired_shard_is_indexed_again(tmp_path):
  # Far from both ends, where a repair leaves no trace in the fingerprint.
  middle = index._END + 100
  episode = tiny_datasets.bridge_episode(0, length=200)
  folder = tiny_datasets.write(tmp_path / "long", [episode])
  long = SourceConfig("bridge_dataset", str(folder))
  (path,) = folder.glob("*.tfrecord-*")
  good = path.read_bytes()
  assert len(good) > 2 * middle
  path.write_bytes(good[:middle] + b"damage" + good[middle + 6 :])
  with pytest.raises(ValueError, match=r"got no step in split 'train'"):
    open_index(long, tmp_path / "index", max_skipped=1)
  path.write_bytes(good)
  assert len(open_index(long, tmp_path / "index")) == 200


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_bar_shows_while_an_index_is_built(config, tmp_path, monkeypatch):
  shown = []
  for terminal in Terminal(), Terminal(), io.StringIO():
    monkeypatch.setattr(sys, "stderr", terminal)
    folder = tmp_path / ("index" if terminal.isatty() else "another")
    open_index(config, folder)
    shown.append(terminal.getvalue())
  built, loaded, piped = shown
  assert "index: 100%" in built and "3/3" in built
  assert loaded == piped == ""


def test_processes_build_the_same_index(config, tmp_path, monkeypatch):
  alone = open_index(config, tmp_path / "one")
  monkeypatch.setattr(index, "_SMALL", 0)
  assert equal(open_index(config, tmp_path / "many"), alone)

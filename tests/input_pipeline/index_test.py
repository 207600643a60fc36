"""Indexes of shards: kept, resumed, and refused when a shard changed."""

import functools

import numpy as np
import pytest

from rt2_jax.input_pipeline import datasets, index
from rt2_jax.input_pipeline.datasets import SourceConfig
from tests import tiny_datasets


@pytest.fixture
def config(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(6)]
  folder = tiny_datasets.write(tmp_path / "data", episodes, num_shards=3)
  return SourceConfig("bridge_dataset", str(folder))


def open_index(config, folder):
  return datasets.open_source(config, "train", 1, str(folder)).index


def equal(a, b) -> bool:
  columns = ("file", "offset", "length", "episode", "text", "action")
  return a.texts == b.texts and all(
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
    match=r"00001-of-00003: got a shard of \d+ bytes, expected the \d+ bytes "
    r"that were indexed; restore the shard, or delete .*\.npz",
  ):
    open_index(config, folder)


def test_processes_build_the_same_index(config, tmp_path, monkeypatch):
  alone = open_index(config, tmp_path / "one")
  monkeypatch.setattr(index, "_SMALL", 0)
  assert equal(open_index(config, tmp_path / "many"), alone)

"""Indexes of shards: kept, resumed, and refused when a shard changed.

Damage is an error, or left out and listed, as far as it is tolerated.
"""

import concurrent.futures
import dataclasses
import functools
import io
import json
import pathlib
import sys
import threading
import uuid

import numpy as np
import pytest

from rt2_jax.action_spaces import RT2
from rt2_jax.byte_ranges import LocalStorage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import datasets, index, kept_index, sources, splits
from rt2_jax.input_pipeline.sources import (
  SourceConfig,
  open_source,
)
from tests import tiny_datasets


@pytest.fixture
def config(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(6)]
  folder = tiny_datasets.write(tmp_path / "data", episodes, num_shards=3)
  return SourceConfig("bridge_dataset", str(folder))


def open_index(config, folder, max_skipped=0):
  return open_source(
    config,
    "train",
    index_folder=folder and str(folder),
    max_skipped=max_skipped,
  ).index


def damage(config, shard: int, byte: int) -> str:
  """Changes one byte of a shard; returns its path."""
  (path,) = pathlib.Path(config.path).glob(f"*-0000{shard}-of-00003")
  data = bytearray(path.read_bytes())
  data[byte] ^= 1
  path.write_bytes(data)
  return str(path)


INDEX_SHARD = sources.index_shard


def equal(a, b) -> bool:
  columns = ("file", "offset", "length", "checksum", "size", "frame")
  columns += ("episode", "text", "plan", "action", "state")
  return (a.texts, a.plans) == (b.texts, b.plans) and all(
    np.array_equal(getattr(a, c), getattr(b, c)) for c in columns
  )


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


DATA = 2000  # a byte of the first record's data in the middle of a shard


def test_damage_is_an_error_and_no_index_is_kept(config, tmp_path):
  path = damage(config, 1, DATA)
  with pytest.raises(
    ValueError,
    match="got 5 examples that cannot be used, expected at most "
    f"config.loader.max_skipped = 0: {path}: got a record at byte 12 whose ",
  ):
    open_index(config, tmp_path / "index")
  assert len(list((tmp_path / "index").glob("*.npz"))) == 1  # the one before


def test_tolerated_damage_is_left_out_and_listed(config, tmp_path):
  whole = open_source(config, "train").index
  path = damage(config, 1, DATA)
  built = open_index(config, tmp_path / "index", max_skipped=5)
  kept = open_index(config, tmp_path / "index", max_skipped=5)
  assert equal(built, kept) and built.damaged == kept.damaged
  (lost,) = built.damaged
  assert f"{path}: got a record at byte 12 whose checksum is" in lost.problem
  assert lost.examples == 5  # steps
  others = np.flatnonzero(whole.episode != 2)  # two episodes in each shard
  np.testing.assert_array_equal(built.offset, whole.offset[others])
  np.testing.assert_array_equal(built.action, whole.action[others])
  with pytest.raises(ValueError, match="got 5 examples .*max_skipped = 4: "):
    open_index(config, tmp_path / "index", max_skipped=4)


def state_lengths(config, lengths):
  """Replaces the lengths in dataset_info.json; None takes them away."""
  path = pathlib.Path(config.path) / "dataset_info.json"
  info = json.loads(path.read_text())
  del info["splits"][0]["shardLengths"]
  if lengths is not None:
    info["splits"][0]["shardLengths"] = [str(n) for n in lengths]
  path.write_text(json.dumps(info))


@pytest.mark.parametrize("stated", [True, False])
def test_what_is_behind_a_damaged_length_is_counted(config, tmp_path, stated):
  """By dataset_info.json, or else by the other shards: two episodes each."""
  whole = open_source(config, "train").index
  if not stated:
    state_lengths(config, None)
  damage(config, 1, 0)
  damage(config, 2, DATA)
  built = open_index(config, tmp_path / "index", max_skipped=2 + 5)
  assert len(built) == len(whole) - 2 * 5 - 5
  lost, one = built.damaged
  assert "corrupt record length at byte 0" in lost.problem
  assert "2 records are lost" in lost.problem and lost.examples == 2
  assert "a record at byte 12 whose checksum is wrong" in one.problem
  with pytest.raises(
    ValueError,
    match=r"got 7 examples .*max_skipped = 6: .*length.*; .*checksum",
  ):
    open_index(config, tmp_path / "other", max_skipped=6)


def cut(config, shard: int, records: int) -> str:
  """Cuts a shard off behind some of its records; returns its path."""
  (path,) = pathlib.Path(config.path).glob(f"*-0000{shard}-of-00003")
  data = path.read_bytes()
  end = 0
  for _ in range(records):
    end += 12 + int.from_bytes(data[end : end + 8], "little") + 4
  path.write_bytes(data[:end])
  return str(path)


def test_a_shard_cut_between_records_is_compared_with_its_length(
  config, tmp_path
):
  path = cut(config, 1, records=1)
  with pytest.raises(
    ValueError, match=f"got 1 ex.* = 0: {path}: got 1 records, expected 2"
  ):
    open_index(config, tmp_path / "index")
  built = open_index(config, tmp_path / "index", max_skipped=1)
  assert len(built) == 5 * 5 and built.damaged[0].examples == 1
  with pytest.raises(ValueError, match=f"{path}: got 1 records, expected 2"):
    open_index(config, tmp_path / "index")  # a kept index is compared too


def test_an_empty_shard_loses_all_its_records(config, tmp_path):
  path = cut(config, 2, records=0)
  with pytest.raises(
    ValueError, match=f"got 2 examples .* = 1: {path}: got an empty TFRecord"
  ):
    open_index(config, tmp_path / "index", max_skipped=1)
  assert len(open_index(config, tmp_path / "index", max_skipped=2)) == 20


def test_more_records_than_stated_are_refused(config, tmp_path):
  state_lengths(config, [2, 1, 2])
  with pytest.raises(ValueError, match="00001-of-00003: got 2 records, expec"):
    open_index(config, tmp_path / "index", max_skipped=100)


def test_a_loss_of_unknown_extent_is_never_tolerated(config, caplog):
  state_lengths(config, None)
  for shard in range(3):
    damage(config, shard, 0)
  with pytest.raises(ValueError, match="how many examples are lost is not kno"):
    open_index(config, None, max_skipped=10**6)
  assert "states no shardLengths of split 'train'" in caplog.text


@pytest.mark.parametrize("known", [True, False])
def test_a_part_of_a_split_is_a_stretch_of_its_episodes(
  config, tmp_path, known
):
  whole = open_source(config, "train").index
  if not known:
    state_lengths(config, None)
  folder = str(tmp_path / "index")
  parts = [
    open_source(config, f"train[{part}]", index_folder=folder).index
    for part in (":20%", "20%:70%", "70%:")
  ]
  assert [len(part) for part in parts] == [5, 15, 10]  # 1, 3 and 2 episodes
  for name in ("offset", "checksum", "action"):
    joined = np.concatenate([getattr(part, name) for part in parts])
    np.testing.assert_array_equal(joined, getattr(whole, name))
  for part in parts:
    assert part.episode.min() == 0 and part.frame.tolist() == [
      *range(len(part))
    ]
  # Whatever was asked for, a shard's index is the same file.
  before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("index/*")}
  assert equal(open_index(config, folder), whole) and len(before) == 3
  assert all(path.stat().st_mtime_ns == t for path, t in before.items())


def test_damage_outside_the_part_counts_for_nothing(config, tmp_path):
  damage(config, 1, DATA)  # the third of six episodes
  folder = str(tmp_path / "index")
  for part, steps in (("train[:2]", 10), ("train[3:]", 15)):
    assert len(open_source(config, part, index_folder=folder)) == steps
  with pytest.raises(ValueError, match="got 5 examples .*checksum is wrong"):
    open_source(config, "train[2:]", index_folder=folder)


def changed_dataset(monkeypatch, **fields):
  known = datasets.DATASETS["bridge_dataset"]
  changed = dataclasses.replace(known, **fields)
  monkeypatch.setitem(datasets.DATASETS, "bridge_dataset", changed)


def times(scale):
  """A dataset's function whose motions are scaled."""

  def standardize(episode):
    canonical = datasets.bridge_dataset(episode)
    return canonical._replace(action=canonical.action * np.float32(scale))

  return standardize


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


def closed(episode):
  """A dataset's function in a module that other processes can import."""
  canonical = datasets.bridge_dataset(episode)
  canonical.action[:, 7] = 0
  return canonical


@pytest.mark.parametrize(
  ("standardize", "processes"),
  [(datasets.bridge_dataset, 2), (closed, 2), (times(3), 0)],
)
def test_processes_build_the_same_index(
  config, tmp_path, monkeypatch, caplog, standardize, processes
):
  """With the program's own function, which a name may not lead to."""
  changed_dataset(monkeypatch, standardize=standardize)
  alone = open_index(config, tmp_path / "one")
  monkeypatch.setattr(index, "_SMALL", 0)
  assert equal(open_index(config, tmp_path / "many"), alone)
  assert ("indexes in one process" in caplog.text) == (processes == 0)


def test_processes_that_do_not_start_are_no_end(
  config, tmp_path, monkeypatch, caplog
):
  """As of a script that opens data without a guard for its own start."""
  alone = open_index(config, tmp_path / "one")

  class Broken(concurrent.futures.ThreadPoolExecutor):
    def submit(self, function, *arguments):
      if arguments[1].endswith("00000-of-00003"):
        return super().submit(function, *arguments)
      raised = concurrent.futures.BrokenExecutor("ended")
      job = concurrent.futures.Future()
      job.set_exception(raised)
      return job

  monkeypatch.setattr(index, "_SMALL", 0)
  monkeypatch.setattr(
    concurrent.futures, "ProcessPoolExecutor", lambda n, mp_context: Broken(n)
  )
  assert equal(open_index(config, tmp_path / "many"), alone)
  assert "ended (ended): indexes in one process" in caplog.text


def as_run(monkeypatch, processes, call):
  """Calls once for each of some processes, at the same time, in threads."""
  monkeypatch.setattr(index, "_LOOK_S", 0.01)
  monkeypatch.setattr(
    index,
    "_place_in_run",
    lambda: (int(threading.current_thread().name[-1]), processes),
  )
  results = {}
  threads = [
    threading.Thread(
      target=lambda i=i: results.update({i: call()}), name=f"process {i}"
    )
    for i in range(processes)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return [results[i] for i in range(processes)]


def test_processes_of_a_run_index_each_its_part(config, tmp_path, monkeypatch):
  alone = open_index(config, tmp_path / "alone")
  indexed = []

  @functools.wraps(sources.index_shard)
  def counted(storage, path, *arguments):
    indexed.append((path[-14:-9], threading.current_thread().name))
    return INDEX_SHARD(storage, path, *arguments)

  monkeypatch.setattr(sources, "index_shard", counted)
  for found in as_run(
    monkeypatch, 2, lambda: open_index(config, tmp_path / "shared")
  ):
    assert equal(found, alone)
  assert sorted(indexed) == [
    ("00000", "process 0"),
    ("00001", "process 1"),
    ("00002", "process 0"),
  ]


def test_a_process_that_shares_no_folder_indexes_all(
  config, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(index, "_PATIENCE_S", 0.05)
  monkeypatch.setattr(index, "_LOOK_S", 0.01)
  monkeypatch.setattr(index, "_place_in_run", lambda: (1, 2))
  found = open_index(config, tmp_path / "own")
  monkeypatch.setattr(index, "_place_in_run", lambda: (0, 1))
  assert equal(found, open_index(config, tmp_path / "alone"))
  assert "2 of the indexes that other processes build did not" in caplog.text


_MET: dict[str, str] = {}


def remembering(episode):
  canonical = datasets.bridge_dataset(episode)
  return canonical._replace(
    instruction=[_MET.setdefault(t, t) for t in canonical.instruction]
  )


def test_a_function_may_keep_what_it_has_met(config, tmp_path, monkeypatch):
  changed_dataset(monkeypatch, standardize=remembering)
  assert len(open_index(config, tmp_path / "index")) == 30
  assert _MET


def test_another_function_in_another_process_is_refused(config):
  known = datasets.DATASETS["bridge_dataset"]
  path = splits.find_split(LocalStorage(), config.path, "train").shards[0].path
  with pytest.raises(ValueError, match="got a dataset function with hash"):
    sources.index_shard(LocalStorage(), path, known, {}, "another")

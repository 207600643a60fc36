"""Indexes of shards: built in parallel, by one process or several of a run.

Damage is an error, or left out and listed, as far as it is tolerated.
"""

import concurrent.futures
import functools
import io
import json
import pathlib
import sys
import threading

import numpy as np
import pytest

from rt2_jax.byte_ranges import LocalStorage
from rt2_jax.input_pipeline import datasets, index, sources, splits
from rt2_jax.input_pipeline.sources import (
  open_source,
)
from tests import tiny_datasets
from tests.small_indexes import (
  changed_dataset,
  closed,
  damage,
  equal,
  open_index,
  times,
)

DATA = 2000  # a byte of the first record's data in the middle of a shard


@pytest.fixture
def config(tmp_path):
  return tiny_datasets.bridge_source(tmp_path / "data", 6, num_shards=3)


INDEX_SHARD = sources.index_shard


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

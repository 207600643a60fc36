"""Programs of data/ about data that others wrote: indexes, statistics."""

import dataclasses
import json
import types

import numpy as np
import pytest

from data import (
  compute_stats,
  index_records,
)
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import bounds_fit
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.tokenizer import Tokenizer
from tests import tiny_datasets
from tests.conftest import ROOT

TOKENIZER_FILE = ROOT / "data/small_tokenizer.model"
TOKENIZER = Tokenizer.from_file(TOKENIZER_FILE)


# -------------------------------------------------------------------- indexes


@pytest.fixture
def sources(tmp_path):
  """A robot source of three shards, and a web source."""
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(5)]
  robot = tiny_datasets.write(tmp_path / "robot", episodes, num_shards=3)
  web = tiny_datasets.web_example(0, "answer en where?", ["here"])
  tiny_datasets.write(tmp_path / "web", [web], "vqa")
  return index_records.config_sources(
    {
      "sources": {"bridge": {"dataset": "bridge_dataset", "path": str(robot)}},
      "web": {"vqa": {"path": str(tmp_path / "web")}},
    }
  )


def test_every_source_is_indexed_once(sources, tmp_path, capsys):
  folder = tmp_path / "index"
  index_records.index_all(sources, TOKENIZER, str(folder), num_workers=2)
  printed = capsys.readouterr().out
  assert "bridge: 25 steps in 3 shards, 1,560 bytes of index" in printed
  assert "vqa: 1 examples in 1 shards, 24 bytes of index" in printed
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  assert len(before) == 4
  index_records.index_all(sources, TOKENIZER, str(folder))
  assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_changed_byte_is_found_and_may_be_left_out(sources, tmp_path, capsys):
  shard = tmp_path / "robot/bridge_dataset-train.tfrecord-00001-of-00003"
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 1
  shard.write_bytes(data)
  folder = str(tmp_path / "index")
  with pytest.raises(
    ValueError, match=r"got 5 ex.*= 4: .*00001-of-00003: .* checksum is wrong"
  ):
    index_records.index_all(sources, TOKENIZER, folder, max_skipped=4)
  index_records.index_all(sources, TOKENIZER, folder, max_skipped=5)
  out = capsys.readouterr().out
  assert "bridge: 20 steps in 3 shards" in out
  assert f"  left out: {shard}: got a record at byte" in out


def arguments(**given):
  names = ("config", "dataset", "path", "split", "index_folder", "tokenizer")
  names += ("num_workers", "max_skipped")
  return types.SimpleNamespace(**{**dict.fromkeys(names), **given})


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({}, "expected either --config, or --dataset and --path"),
    ({"dataset": "bridge_dataset"}, "expected either --config, or"),
    ({"config": {}, "dataset": "bridge_dataset", "path": "x"}, "--config set"),
    ({"dataset": "brigde_dataset", "path": "x"}, "bridge_dataset"),
    ({"dataset": "web", "path": "x"}, "pass --index_folder=DIR"),
    (
      {"dataset": "web", "path": "x", "index_folder": "y"},
      "pass --tokenizer=FILE, the job's own",
    ),
  ],
)
def test_index_records_names_a_wrong_flag(given, message):
  with pytest.raises(ValueError, match=message):
    index_records.asked_for(arguments(**given))


# ----------------------------------------------------------------- statistics


def test_statistics_are_those_of_the_actions(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed, 20) for seed in range(10)]
  actions = []
  for episode in episodes:
    action = np.reshape(episode["steps/action"], (-1, 7))
    action[:, 4] = 0.3  # a wrist that the robot never bends
    episode["steps/action"] = action.ravel().tolist()
    episode["steps/observation/image_0"] = [b"not decoded"] * 20
    actions.append(action)
  dx = np.concatenate(actions)[:, 0].astype(np.float32)
  folder = tiny_datasets.write(tmp_path, episodes, num_shards=2)
  stats = compute_stats.compute(SourceConfig("bridge_dataset", str(folder)))
  assert (stats["num_episodes"], stats["num_steps"]) == (10, 200)
  row = stats["dimensions"]["dx"]
  np.testing.assert_allclose(
    [row[name] for name in compute_stats.COLUMNS],
    [
      *np.quantile(dx, [0.01, 0.99]),
      *(dx.min(), dx.max(), dx.mean(), dx.std()),
    ],
    rtol=1e-4,
  )
  assert stats["bounds"]["dx"] == [row["q01"], row["q99"]]
  assert stats["dimensions"]["terminate"]["mean"] == pytest.approx(0.05)

  degenerate = [
    name for name, d in stats["dimensions"].items() if d.get("degenerate")
  ]
  assert degenerate == ["dpitch"]
  assert stats["bounds"]["dpitch"] == pytest.approx([0.2995, 0.3005])
  assert compute_stats.table(stats).count("degenerate") == 1
  space = SourceConfig(
    "bridge_dataset", str(folder), bounds=stats["bounds"]
  ).space
  assert space.dimensions[1].low == row["q01"]


def test_every_unit_but_a_grippers_gets_bounds(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed, 20) for seed in range(3)]
  for episode in episodes:
    action = 3000 * np.reshape(episode["steps/action"], (-1, 7))
    action[:, 6] /= 3000
    action[:, 2] = 1800.0  # a motor that is not used, in ticks
    episode["steps/action"] = action.ravel().tolist()
  folder = tiny_datasets.write(tmp_path, episodes, name="my_arm")
  units = ("deg", "m/s", "ticks")
  numbers = [
    {"name": f"n{i}", "unit": unit, "feature": "action", "column": i}
    for i, unit in enumerate(units)
  ]
  grip = {"name": "grip", "feature": "action", "column": 6}
  described = {
    "rate_hz": 10,
    "cameras": {"primary": "observation/image_0"},
    "instruction": "language_instruction",
    "action": [*numbers, grip | {"gripper": {"open": 1, "closed": 0}}],
  }
  (folder / "robot.json").write_text(json.dumps(described))
  config = SourceConfig("robot.json", str(folder))
  stats = compute_stats.compute(config)
  assert list(stats["bounds"]) == ["n0", "n1", "n2"]
  low, high = stats["bounds"]["n2"]
  assert low < 1800 < high < 1801
  (tmp_path / "stats.json").write_text(json.dumps(stats))
  measured = dataclasses.replace(
    config, statistics=str(tmp_path / "stats.json"), bounds="q01_q99"
  )
  action = open_source(measured, "train").index.action
  assert bounds_fit.misfits(config.space, action)
  assert not bounds_fit.misfits(measured.space, action)


def test_statistics_are_of_a_stride(tmp_path):
  """Joined steps move further than those that were recorded."""
  episodes = [tiny_datasets.bridge_episode(seed, 30) for seed in range(4)]
  for episode in episodes:
    action = np.reshape(episode["steps/action"], (-1, 7))
    action[:, 0] = np.abs(action[:, 0])
    episode["steps/action"] = action.ravel().tolist()
  folder = tiny_datasets.write(tmp_path / "data", episodes)
  path = tmp_path / "stats.json"
  once = SourceConfig("bridge_dataset", str(folder), statistics=str(path))
  fifth = dataclasses.replace(once, stride=5)
  for config, other in ((once, fifth), (fifth, once)):
    stats = compute_stats.compute(config)
    assert stats["rate_hz"] == 5.0 / config.stride
    path.write_text(json.dumps(stats))
    measured = dataclasses.replace(config, bounds="q01_q99")
    action = open_source(config, "train").index.action
    assert not bounds_fit.misfits(measured.space, action)
    with pytest.raises(UserError, match=f"--stride={other.stride}"):
      _ = dataclasses.replace(other, bounds="q01_q99").space


def test_statistics_leave_out_what_training_leaves_out(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed, 5) for seed in range(3)]
  episodes[1]["steps/action"][7] = float("nan")
  folder = tiny_datasets.write(tmp_path, episodes)
  config = SourceConfig("bridge_dataset", str(folder))
  with pytest.raises(ValueError, match="got 5 examples .*got nan in step 1"):
    compute_stats.compute(config)
  stats = compute_stats.compute(config, max_skipped=5)
  assert (stats["num_episodes"], stats["num_steps"]) == (2, 10)
  (problem,) = stats["left_out"]
  assert "episode 1: got nan" in problem
  assert f"left out: {problem}" in compute_stats.table(stats)


def test_fingerprint_follows_the_shards(tmp_path):
  def fingerprint(folder, num_episodes):
    config = tiny_datasets.bridge_source(tmp_path / folder, num_episodes)
    return compute_stats.compute(config)["fingerprint"]

  assert fingerprint("a", 2) == fingerprint("b", 2) != fingerprint("c", 3)


def test_committed_statistics_give_bounds():
  files = sorted((ROOT / "data/stats").glob("*.json"))
  assert files
  for path in files:
    stats = json.loads(path.read_text())
    config = SourceConfig(
      stats["dataset"], str(ROOT), bounds="q01_q99", statistics=str(path)
    )
    for dimension in config.space.dimensions[1:]:
      row = stats["dimensions"][dimension.name]
      if dimension.unit in ("m", "rad"):
        assert (dimension.low, dimension.high) == (row["q01"], row["q99"])
      assert row["min"] <= row["q01"] < row["q99"] <= row["max"]

"""Datasets by import path, and folders that hold another one."""

import json
import subprocess
import sys

import pytest

from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from tests import tiny_datasets
from tests.conftest import ROOT

MODULE = """
import dataclasses
import numpy as np
from rt2_jax.action_spaces import RT2
from rt2_jax.input_pipeline.datasets import RobotDataset, bridge_dataset

UNIT = {unit}

def standardize(episode):
  found = bridge_dataset(episode)
  found.action[:, 1] *= UNIT
  return found

kitchen = RobotDataset(
  RT2, {{"primary": "observation/image_0"}}, standardize, version={version}
)
number = 3
"""


def write_module(folder, unit=1.0, version=1):
  (folder / "my_lab").mkdir(exist_ok=True)
  text = MODULE.format(unit=unit, version=version)
  (folder / "my_lab/data.py").write_text(text)


INDEX = """
import logging, sys
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec

if __name__ == "__main__":
  logging.basicConfig(level=logging.INFO)
  path, folder, workers = sys.argv[1:]
  config = SourceConfig("my_lab.data:kitchen", path)
  index = open_source(
    config, "train", index_folder=folder, num_workers=int(workers)
  ).index
  print(len(index), *index.action[:2, 1])
"""


def test_a_dataset_of_another_package_in_index_workers(tmp_path):
  """Spawned processes import it; an index knows the version and the code."""
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(4)]
  data = tiny_datasets.write(tmp_path / "data", episodes, num_shards=2)
  program = tmp_path / "program.py"
  program.write_text(INDEX)

  def run(workers=2):
    done = subprocess.run(
      [sys.executable, program, data, tmp_path / "index", str(workers)],
      env={
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "PYTHONDONTWRITEBYTECODE": "1",  # it looks at whole seconds
      },
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    length, *dx = map(float, done.stdout.split())
    assert length == 20
    return dx, done.stderr

  recorded = episodes[0]["steps/action"][0], episodes[0]["steps/action"][7]
  write_module(tmp_path)
  dx, _ = run()
  assert dx == pytest.approx(recorded, rel=1e-5)
  _, said = run()
  assert "again" not in said
  write_module(tmp_path, unit=2.0)
  dx, said = run()
  assert dx == pytest.approx([2 * x for x in recorded], rel=1e-5)
  write_module(tmp_path, unit=2.0, version=2)
  _, said = run()
  assert "version" in said


@pytest.mark.parametrize(
  ("dataset", "parts"),
  [
    ("my_lab.dat:kitchen", ["my_lab.dat", "a source's dataset"]),
    ("my_lab.data:kichen", ["did you mean 'kitchen'"]),
    ("my_lab.data:number", ["int", "RobotDataset"]),
    ("bridge_datset", ["did you mean 'bridge_dataset'", "robot.json"]),
  ],
)
def test_a_dataset_that_does_not_exist(tmp_path, monkeypatch, dataset, parts):
  write_module(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError) as caught:
    SourceConfig(dataset, str(tmp_path)).space  # noqa: B018
  for part in parts:
    assert part in str(caught.value)


def template(folder, name):
  """An episode of the popular RLDS template, whose fields look as LIBERO's."""
  features = {
    "steps/is_first": [1, 0],
    "steps/is_last": [0, 1],
    "steps/action": [0.1] * 14,
    "steps/language_instruction": [b"wipe"] * 2,
    "steps/observation/image": [tiny_datasets.jpeg(t) for t in range(2)],
  }
  return str(tiny_datasets.write(folder, [features], name))


def test_a_folder_of_another_dataset_is_refused(tmp_path):
  path = template(tmp_path, "example_dataset")
  config = SourceConfig("libero", path)
  with pytest.raises(UserError) as caught:
    open_source(config, "train")
  for part in ("'example_dataset'", "'libero'", f"{path}/robot.json"):
    assert part in str(caught.value)
  # The user says that its fields mean the same.
  (tmp_path / "robot.json").write_text(json.dumps({"dataset": "libero"}))
  assert len(open_source(config, "train")) == 2
  assert len(open_source(SourceConfig("robot.json", path), "train")) == 2
  (tmp_path / "robot.json").write_text(json.dumps({"dataset": "bridge"}))
  with pytest.raises(UserError, match="'example_dataset'.*'libero'"):
    open_source(config, "train")


@pytest.mark.parametrize("name", ["libero", "libero_spatial_no_noops"])
def test_the_names_that_a_dataset_is_published_under(tmp_path, name):
  path = template(tmp_path, name)
  assert len(open_source(SourceConfig("libero", path), "train")) == 2

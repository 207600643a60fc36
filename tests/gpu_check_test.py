"""launch/gpu_check.py on a machine without a GPU and with less installed."""

import json
import subprocess
import sys

import pytest

from launch import config_file, gpu_check
from tests.conftest import ROOT

WITHOUT = """
import runpy, sys

class Without:
  def find_spec(self, name, path, target=None):
    if name.partition(".")[0] in {missing}:
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without())
sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_part(part: str, *missing: str) -> list[dict]:
  program = WITHOUT.replace("{missing}", repr(set(missing)))
  done = subprocess.run(
    [
      *(sys.executable, "-c", program, "launch/gpu_check.py"),
      *(f"--part={part}", "--tiny"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return list(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("part", ["lora", "decode", "decode_int8"])
def test_a_bare_machine_is_enough(part):
  heavy = ("tensorflow", "mujoco", "gymnasium", "tensorboardX")
  rows = run_part(part, *heavy)
  assert all(row["part"] == part for row in rows)
  if part == "lora":
    (row,) = rows
    assert row["step_s"] > 0 and 0 < row["mfu"] < 1.5
    assert row["planned_memory_gb"] > 0 and row["estimated_memory_gb"] > 0
  else:
    assert [row["robots"] for row in rows] == [1, 8]


def test_without_a_gpu_it_ends_at_once():
  done = subprocess.run(
    [sys.executable, "launch/gpu_check.py", "--parts=matmul"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  failure, _ = map(json.loads, done.stdout.splitlines())
  assert "sees no GPU" in failure["error"] and "--tiny" in failure["error"]


@pytest.mark.parametrize(
  "name",
  [*gpu_check.CONFIGS.values(), "configs/rt1_debug.py"],
)
def test_config_files_read_the_same_without_ml_collections(name, monkeypatch):
  expected = config_file.read(name)
  monkeypatch.setitem(sys.modules, "ml_collections", config_file.stand_in())
  for module in [m for m in sys.modules if m.startswith("configs")]:
    monkeypatch.delitem(sys.modules, module)
  found = config_file.read(name)
  texts = [json.dumps(f, sort_keys=True) for f in (found, expected)]
  assert texts[0] == texts[1]


def test_a_part_that_fails_is_a_line_and_the_others_go_on(tmp_path):
  """Without peft and transformers `torch` fails; `matmul` does not."""
  (tmp_path / "transformers.py").write_text("raise ImportError('no such')")
  done = subprocess.run(
    [sys.executable, "launch/gpu_check.py", "--tiny", "--parts=torch,matmul"],
    cwd=ROOT,
    env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  rows = list(map(json.loads, done.stdout.splitlines()))
  errors = [row for row in rows if "error" in row]
  assert [row["part"] for row in errors] == ["torch"]
  assert any(row.get("tflops", 0) > 0 for row in rows)

"""The robot that ships, data/mini_robot, solves what the quick start shows."""

import json
import subprocess
import sys

from rt2_jax.weights.stored_checkpoint import StoredCheckpoint
from tests.conftest import ROOT

FOLDER = ROOT / "data/mini_robot"


def test_it_is_small_and_says_how_it_was_made():
  files = [path for path in FOLDER.rglob("*") if path.is_file()]
  assert sum(path.stat().st_size for path in files) < 5_000_000
  here = b" /"  # Orbax notes where it wrote
  notes = [p.read_bytes() for p in files if p.name == "commit_success.txt"]
  assert notes and not any(here in note for note in notes)
  stored = StoredCheckpoint.open(FOLDER)
  assert not stored.has_optimizer and stored.step == 5000
  assert {str(shape.dtype) for shape in stored.shapes.values()} == {"bfloat16"}
  made_by = (ROOT / "Makefile").read_text().partition("\nmini-robot:")[2]
  weights = stored.meta["config"]["pretrained"]
  assert f"--config.pretrained={weights}" in made_by


def test_it_solves_seen_tasks(tmp_path):
  command = [sys.executable, "launch/rollout.py", "--policy=data/mini_robot"]
  command += ["--flagfile=data/mini_concepts.flags", "--families=move_to"]
  command += ["--image_size=64", "--suites=seen", "--episodes=10", "--films=0"]
  command += [f"--output={tmp_path}"]
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  result = json.loads((tmp_path / "mini_robot.json").read_text())
  # docs/mini_robot says how many of 100.
  assert result["suites"]["seen"]["successes"] >= 7

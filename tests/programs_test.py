"""Programs that a person starts: wrong flags get one clear error."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CONFIG = "--config=configs/bridge_debug.py"


def fail(*command: str) -> str:
  """Runs a program that must fail; returns the end of what it printed."""
  done = subprocess.run(
    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode != 0, done.stdout
  return (done.stdout + done.stderr)[-2000:]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--workdir=x"], "Flag --config must have a value"),
    ([CONFIG], "Flag --workdir must have a value"),
    ([CONFIG, "--workdir=x", "--confg.seed=1"], "Unknown command line flag"),
    (["--config=configs/nope.py", "--workdir=x"], "nope.py"),
    (
      [CONFIG, "--workdir=x", "--config.optimizer.learning_rat=1"],
      'Did you mean "learning_rate"',
    ),
    ([CONFIG, "--workdir=x", "--config.batch_size=big"], "batch_size"),
    ([CONFIG, "--workdir=x", "extra"], "expected flags only"),
  ],
)
def test_train_names_a_wrong_flag(flags, message, tmp_path):
  flags = [f.replace("workdir=x", f"workdir={tmp_path}/x") for f in flags]
  assert message in fail("launch/train.py", *flags)
  assert not (tmp_path / "x").exists()  # nothing was started


def test_evaluate_needs_a_run(tmp_path):
  message = fail("launch/evaluate.py", f"--workdir={tmp_path}/nowhere")
  assert "which does not exist; pass the --workdir of a training run" in message

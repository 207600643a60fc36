"""Programs that a person starts: wrong flags get one clear error."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import tiny_datasets
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


def test_show_batch_draws_a_picture(tmp_path):
  source = tiny_datasets.bridge_source(tmp_path / "data")
  output = tmp_path / "pictures/batch.png"
  done = subprocess.run(
    [
      sys.executable,
      "launch/show_batch.py",
      CONFIG,
      f"--config.sources.bridge.path={source.path}",
      "--config.batch_size=16",
      "--config.augmentation.crop=0.1",
      "--rows=3",
      "--step=7",
      f"--output={output}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "step 7: 3 of 16 rows; bridge 16" in done.stdout
  pixels = np.asarray(Image.open(output).convert("L"))
  assert pixels.shape[1] > 1000 and pixels.std() > 20

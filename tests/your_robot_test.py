"""docs/your_robot.md: every command of its walk-through runs as written."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from rt2_jax.input_pipeline.sources import SourceConfig
from tests.conftest import QUICK_COMPILATION, ROOT

PAGE = (ROOT / "docs/your_robot.md").read_text()
WALK = PAGE[PAGE.index("## Walk-through") : PAGE.index("## Two arms")]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", WALK, re.S)
PLACE = "runs/your_robot"
# The road, and not its length; one device compiles in a fraction of the time.
SMALLER = "--config.model.image_size=32"
SHORTER = {
  "launch/show_batch.py": [SMALLER, "--rows=2"],
  "launch/train.py": [
    *("--config.num_steps=2", "--config.optimizer.warmup_steps=1"),
    *("--config.batch_size=4", "--config.log_every=1", SMALLER),
  ],
  "launch/evaluate.py": ["--limit=4", "--batch_size=4"],
}


def moved(text: str, folder) -> str:
  return text.replace(PLACE, str(folder))


def run(words, folder):
  env = os.environ | {"XLA_FLAGS": QUICK_COMPILATION}
  done = subprocess.run(
    [sys.executable, *words[1:], *SHORTER.get(words[1], [])],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )
  assert done.returncode == 0, (words, done.stdout, done.stderr)
  return done.stdout


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
  """The folder after the walk, what each program said, and the last block."""
  folder = tmp_path_factory.mktemp("walk")
  said = {}
  config, acting = [text for kind, text in BLOCKS if kind == "python"]
  (folder / "my_arm.py").write_text(moved(config, folder))
  commands = [text for kind, text in BLOCKS if kind == "bash"]
  for line in "".join(commands).replace("\\\n", " ").splitlines():
    words = shlex.split(moved(line, folder))
    assert words[0] == "python", words
    said[words[2] if words[1] == "-m" else words[1]] = run(words, folder)
  scope = {}
  exec(moved(acting, folder), scope)
  return folder, said, scope


def test_every_command_runs(walked):
  folder, said, _ = walked
  assert list(said) == [
    "data.make_arm_recordings",
    "data.import_frames",
    "data.check_episodes",
    "launch/show_batch.py",
    "launch/train.py",
    "launch/evaluate.py",
  ]
  assert "50 episodes, 800 steps" in said["data.import_frames"]
  assert "ERROR" not in said["data.check_episodes"]
  for name in ("check.html", "batch.png"):
    assert (folder / name).stat().st_size > 10_000


def test_the_policy_answers_in_the_units_of_the_description(walked):
  folder, _, scope = walked
  fields = json.loads((folder / "arm/1.0.0/robot.json").read_text())
  assert scope["chunk"].shape == (4, 4)
  names = SourceConfig("robot.json", str(folder / "arm/1.0.0")).space.names
  assert names == ("terminate", "shoulder", "elbow", "gripper")
  for i, row in enumerate(fields["action"][:2], 1):
    values = scope["chunk"][:, i]
    assert (values >= row["low"]).all() and (values <= row["high"]).all()
  assert np.isin(scope["chunk"][:, 0], (0, 1)).all()

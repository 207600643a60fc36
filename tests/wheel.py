"""Uses the wheel as a person who has no clone: `python -m tests.wheel`.

Builds it, installs it in clean environments of this Python outside the
repository, and runs its commands there: from data to an exported folder with
JAX, then that folder without JAX and TensorFlow. It needs no package itself.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
LARGEST = 12_000_000  # bytes
WITH_JAX = "jax,data,torch,sim"
WITHOUT_JAX = "torch,serve"

# A person's own config, on one that ships.
MINE = """
from configs import rt1_debug

def get_config(data):
  config = rt1_debug.get_config()
  config.sources.rt1.path = data
  config.batch_size = 8
  config.num_steps, config.optimizer.warmup_steps = 4, 1
  config.evaluation = {"every": 0}
  return config
"""
ACT = """
import importlib.util, json, sys
import numpy as np
from {module} import {policy}
absent = ("data", "configs", "launch", *{absent})
assert not any(map(importlib.util.find_spec, absent)), sys.path
image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
act = {policy}.{load}
print(json.dumps(act(image, "pick apple").tolist()))
"""
IN_JAX = {
  "module": "rt2_jax.policy",
  "policy": "Policy",
  "load": "from_checkpoint('run')",
  "absent": (),
}
IN_TORCH = {
  "module": "rt2_jax.pytorch.policy",
  "policy": "TorchPolicy",
  "load": "from_folder('exported')",
  "absent": ("jax", "flax", "orbax", "tensorflow", "tensorflow_datasets"),
}


class Installed:
  """A clean environment with the wheel, and the folder in which it is used."""

  def __init__(self, wheel: pathlib.Path, extras: str, folder: pathlib.Path):
    self._bin = new_environment(folder / f"environment-{extras}")
    self._folder = folder
    self.run("pip", "install", "-q", f"{wheel}[{extras}]")

  def run(self, command: str, *arguments: str, fails: bool = False) -> str:
    """Runs a command of the environment; returns what it printed."""
    start = [str(self._bin / command), *arguments]
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    variables = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
      start,
      cwd=self._folder,
      env=variables | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    expected = 1 if fails else 0
    if done.returncode != expected:
      sys.exit(f"{' '.join(start)}: exit code {done.returncode}\n{done.stdout}")
    print(f"{command} {' '.join(arguments)[:90]!r}", flush=True)
    return done.stdout

  def act(self, **how) -> list[float]:
    """Returns the action of a policy on a picture of noise."""
    printed = self.run("python", "-c", ACT.format(**how))
    return json.loads(printed.splitlines()[-1])


def new_environment(folder: pathlib.Path) -> pathlib.Path:
  """Makes an empty environment; returns the folder of its commands."""
  subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
  return folder / "bin"


def build(folder: pathlib.Path) -> pathlib.Path:
  """Builds the wheel, from nothing that an earlier build left."""
  shutil.rmtree(ROOT / "build", ignore_errors=True)
  pip = str(new_environment(folder / "build") / "pip")
  command = [pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
  subprocess.run(command, check=True)
  (wheel,) = folder.glob("*.whl")
  size = wheel.stat().st_size
  assert size < LARGEST, f"{wheel.name} has {size} bytes"
  print(f"{wheel.name}: {size / 1e6:.1f} MB", flush=True)
  return wheel


def train_and_export(here: Installed, folder: pathlib.Path):
  """From data to an exported folder, and a robot in simulation."""
  here.run("rt2-make-rt1-episodes", "--output_dir=rt1", "--train_episodes=4")
  path = "rt1/fractal20220817_data/0.1.0"
  found = here.run(
    "rt2-check-episodes",
    f"--path={path}",
    "--dataset=fractal20220817_data",
    fails=True,  # RT-1's bounds are too wide for these motions
  )
  assert "page: check.html" in found
  (folder / "mine.py").write_text(MINE)
  here.run("rt2-train", f"--config=mine.py:{path}", "--workdir=run")
  here.run("rt2-evaluate", "--workdir=run", "--limit=8")
  here.run("rt2-convert", "to_hf", "--workdir=run", "--output=exported")
  for checkpoint in ("run", "data/mini_robot"):
    assert "8 numbers" in here.run("rt2-describe", checkpoint)
  here.run(
    "rt2-show-batch",
    "--config=rt1_debug",
    f"--config.sources.rt1.path={path}",
    "--config.batch_size=8",
  )
  here.run(
    "rt2-rollout",
    "--policy=data/mini_robot,guess",
    "--flagfile=data/mini_concepts.flags",
    "--families=move_to",
    "--image_size=64",
    "--suites=seen",
    "--episodes=1",
    "--output=rollouts",
  )
  missing = here.run("rt2-serve", "--help", fails=True)
  assert "pip install 'rt2-jax[serve]'" in missing, missing


def main():
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    wheel = build(folder)
    with_jax = Installed(wheel, WITH_JAX, folder)
    train_and_export(with_jax, folder)
    expected = with_jax.act(**IN_JAX)
    without_jax = Installed(wheel, WITHOUT_JAX, folder)
    found = without_jax.act(**IN_TORCH)
    assert found == expected, (found, expected)
    served = without_jax.run("rt2-serve", "--help", fails=True)  # absl's code
    assert "--camera_sizes" in served, served
    missing = without_jax.run("rt2-train", "--help", fails=True)
    assert "pip install 'rt2-jax[jax]'" in missing, missing
  print(f"the wheel works outside the repository: Python {sys.version}")


if __name__ == "__main__":
  main()

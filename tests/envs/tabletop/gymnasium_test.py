"""The tabletop in gymnasium: by its name, checked, many at once."""

import os
import subprocess
import sys
import warnings

import gymnasium.utils.env_checker
import pytest

from rt2_jax.envs.tabletop.environment import TabletopConfig
from tests.conftest import ROOT
from tests.envs.tabletop.rendering import rendered


@rendered
def test_gymnasium_makes_it_and_finds_nothing_wrong():
  env = gymnasium.make("rt2_jax/Tabletop-v0", render_mode="rgb_array")
  assert env.unwrapped.config == TabletopConfig()
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "(?s).*alternative render modes")
    gymnasium.utils.env_checker.check_env(env.unwrapped)


VECTOR = """
import sys, gymnasium
import rt2_jax.envs.tabletop
from gymnasium.vector import AsyncVectorEnv

def make():
  return gymnasium.make("rt2_jax/Tabletop-v0")

if __name__ == "__main__":
  start, draws_before = sys.argv[1], len(sys.argv) > 2
  if draws_before:
    make().reset(seed=0)
  envs = AsyncVectorEnv([make] * 2, context=start, shared_memory=False)
  seen, info = envs.reset(seed=7)
  seen, *_ = envs.step([envs.single_action_space.low] * 2)
  print(seen["instruction"] == tuple(info["instruction"]))
  print(seen["image"].shape, (seen["image"][0] != seen["image"][1]).any())
  envs.close()
"""


def run_vector(tmp_path, *arguments):
  program = tmp_path / "vector.py"
  program.write_text(VECTOR)
  return subprocess.run(
    [sys.executable, str(program), *arguments],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_many_in_processes_of_their_own(start, tmp_path):
  done = run_vector(tmp_path, start)
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.splitlines() == ["True", "(2, 96, 96, 3) True"]


def test_a_fork_after_drawing_says_what_to_do(tmp_path):
  """It would wait for ever for threads that only the parent has."""
  done = run_vector(tmp_path, "fork", "draws before")
  assert done.returncode and "context='spawn'" in done.stderr

"""A policy that is served acts as it does in the same process, end to end."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.rollout_program_test import save_run

SUITES = ("--suites=seen,people", "--episodes=2")
TABLETOP = {"image_size": 48, "max_steps": 12}


def start(*command: str) -> subprocess.CompletedProcess:
  done = subprocess.run(
    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
  return done


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
  return save_run(tmp_path_factory.mktemp("runs") / "served", tokenizer)


@pytest.fixture(scope="module")
def direct(run, tmp_path_factory):
  """How each trial ends when the policy acts in the program itself."""
  return rollout(f"--policy={run}", tmp_path_factory.mktemp("direct"))


def rollout(policy, output):
  flags = [f"--{name}={value}" for name, value in TABLETOP.items()]
  flags += [f"--output={output}", "--num_envs=4", "--films=0", *SUITES]
  start("launch/rollout.py", policy, *flags)
  (file,) = output.glob("*.json")
  return {
    (suite, trial["number"]): (trial["outcome"], trial["steps"])
    for suite, cell in json.loads(file.read_text())["suites"].items()
    for trial in cell["trials"]
  }


@pytest.fixture(scope="module")
def address(run, direct):  # which has compiled the same program
  """Of launch/serve.py, which ends cleanly when it is told to."""
  flags = [f"--checkpoint={run}", "--camera_sizes=48x48", "--port=0"]
  flags += ["--batch_sizes=4", "--control_hz=5"]
  process = subprocess.Popen(
    [sys.executable, "launch/serve.py", *flags],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  lines = iter(process.stdout.readline, "")
  ready = [line for line in _until(lines, "ready: ") if "ready: " in line]
  assert ready, process.stderr.read()[-2000:]
  yield ready[0].removeprefix("ready: ").strip()
  process.terminate()
  said, errors = process.communicate(timeout=30)
  assert process.returncode == 0 and "stopped" in said and not errors


def _until(lines, start):
  for line in lines:
    yield line
    if line.startswith(start):
      return


def test_a_rollout_by_a_service_is_the_direct_one(address, direct, tmp_path):
  assert rollout(f"--policy={address}", tmp_path) == direct


def test_a_robots_loop_by_a_service_ends_as_the_direct_rollout(
  address, direct, tmp_path
):
  done = start(
    *("launch/robot.py", f"--server={address}", "--robot=tabletop"),
    *(f"--tabletop={json.dumps(TABLETOP)}", "--rate_hz=200"),
    *(f"--record={tmp_path}", "--timeout_s=20", *SUITES),
  )
  lines = done.stdout.splitlines()
  ended = [line for line in lines if ": " in line and "recorded" not in line]
  found = {}
  for line in ended[:-1]:
    trial, _, reason = line.partition(": ")
    suite, number = trial.split()
    found[suite, int(number)] = reason
  assert found == {trial: reason for trial, (reason, _) in direct.items()}
  assert json.loads(lines[-1])["n"] == len(direct)
  assert len(list(tmp_path.glob("*.npz"))) == len(direct)

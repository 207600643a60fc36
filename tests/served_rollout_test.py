"""A policy that is served acts as it does in the same process, end to end."""

import json
import os
import signal
import subprocess
import sys
import types

import pytest

from launch import policy_flag
from rt2_jax import robot_log
from tests.conftest import ROOT
from tests.rollout_program_test import save_run
from tests.serving.closed_loop import serving, start

SUITES = ("--suites=seen,people", "--episodes=2")
TABLETOP = {"image_size": 48, "max_steps": 12}


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
  """Of launch/serve.py."""
  flags = "--camera_sizes=48x48", "--batch_sizes=4", "--control_hz=5"
  with serving(run, *flags) as address:
    yield address


def test_a_rollout_by_a_service_is_the_direct_one(address, direct, tmp_path):
  assert rollout(f"--policy={address}", tmp_path) == direct


@pytest.mark.parametrize(
  ("url", "name"),
  [
    ("ws://10.0.0.5:8000", "10.0.0.5_8000"),
    ("wss://lab.org/arms/kitchen/", "lab.org_arms_kitchen"),
  ],
)
def test_a_service_behind_a_path_names_a_file(url, name):
  benchmark = types.SimpleNamespace(baselines={})
  assert policy_flag.names([url], benchmark) == {name: url}


def test_a_robots_loop_by_a_service_ends_as_the_direct_rollout(
  address, direct, tmp_path
):
  said = start(
    *("launch/robot.py", f"--server={address}", "--robot=tabletop"),
    *(f"--tabletop={json.dumps(TABLETOP)}", "--rate_hz=200"),
    *(f"--record={tmp_path}", "--timeout_s=20", *SUITES),
  )
  lines = said.splitlines()
  ended = [line for line in lines if ": " in line and "recorded" not in line]
  found = {}
  for line in ended[:-1]:
    trial, _, reason = line.partition(": ")
    suite, number = trial.split()
    found[suite, int(number)] = reason
  assert found == {trial: reason for trial, (reason, _) in direct.items()}
  assert json.loads(lines[-1])["n"] == len(direct)
  assert len(list(tmp_path.glob("*.npz"))) == len(direct)


ARM = """
import numpy as np
from rt2_jax.observation import Observation

class Arm:
  def __init__(self, instruction):
    self.instruction = instruction

  def observe(self):
    frame = np.zeros((1, 48, 48, 3), np.uint8)
    return Observation({"primary": frame}, self.instruction)

  def apply(self, action):
    print("moves", flush=True)

  def stop(self):
    print("stopped", flush=True)

  def hold(self): pass
  def position(self): pass
  def is_over(self): pass
  def correction(self): return np.zeros(8)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_robot_and_keeps_its_episode(
  address, tmp_path, number
):
  (tmp_path / "arm_of_a_lab.py").write_text(ARM)
  record = tmp_path / "episodes"
  process = subprocess.Popen(
    [
      *(sys.executable, "launch/robot.py", f"--server={address}"),
      *("--robot=arm_of_a_lab:Arm", "--instruction=go", f"--record={record}"),
    ],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    moved = [process.stdout.readline() for _ in range(3)]
    assert moved == ["moves\n"] * 3
    process.send_signal(number)
    said = process.stdout.read()
  assert "stopped\nrecorded: " in said
  (episode,) = record.glob("*.npz")
  about, _ = robot_log.read(episode)
  assert about["reason"] == "interrupted"

"""Two arms, from a LeRobot folder to actions and back, by the page's commands.

They are those of docs/your_robot.md. A minute on one core.
"""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import Observation
from tests.conftest import ROOT
from tests.data import tiny_robots
from tests.gcs import free_port
from tests.your_robot_test import BLOCKS, PAGE, run

TWO_ARMS = PAGE[PAGE.index("## Two arms") : PAGE.index("## Other recordings")]
COMMANDS = [
  shlex.split(line)
  for block in re.findall(r"```bash\n(.*?)```", TWO_ARMS, re.S)
  for line in block.replace("\\\n", " ").splitlines()
]
pytestmark = pytest.mark.slow
SIZE = (48, 64)  # of the pictures, here
NUM_STEPS = 12  # of an episode


class Arms:
  """Arms that show noise and keep what they were told."""

  def __init__(self, instruction: str):
    self.instruction = instruction
    self.applied: list[np.ndarray] = []
    self.rng = np.random.default_rng(0)

  def observe(self) -> Observation:
    frame = (1, *SIZE, 3)
    images = {
      camera: self.rng.integers(0, 256, frame, np.uint8)
      for camera in ("primary", "hand")
    }
    return Observation(images, self.instruction, tiny_robots.numbers(0, 1)[0])

  def apply(self, action: np.ndarray) -> None:
    self.applied.append(action)

  def hold(self) -> None: ...

  def stop(self) -> None: ...

  def position(self) -> None:
    return None

  def is_over(self) -> bool:
    return len(self.applied) == NUM_STEPS

  def correction(self) -> None:
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("two_arms")
  tiny_robots.write_lerobot(folder / "recorded", "v3.0", (12, 9, 11))
  config = next(text for kind, text in BLOCKS if kind == "python")
  (folder / "my_arm.py").write_text(config)
  return folder


@pytest.fixture(scope="module")
def said(folder):
  """What each program printed; they ran in the page's order."""
  port = free_port()
  moved = {
    "runs/your_robot/my_arm.py": f"{folder}/my_arm.py",
    "runs/two_arms": str(folder),
    "my_two_arms": f"{folder}/recorded",
    "480x640": "{}x{}".format(*SIZE),
    "my_lab.arms:make": "tests.two_arms_test:Arms",
    ":8000": f":{port}",
  }
  said, service = {}, None
  for words in COMMANDS:
    line = shlex.join(words)
    for old, new in moved.items():
      line = line.replace(old, new)
    words = shlex.split(line)
    if words[1] == "launch/serve.py":
      service = serve(words, port)
    else:
      said[words[2] if words[1] == "-m" else words[1]] = run(words, folder)
  service.terminate()
  stopped, errors = service.communicate(timeout=60)
  assert service.returncode == 0 and "stopped" in stopped, errors
  return said


def serve(words, port) -> subprocess.Popen:
  service = subprocess.Popen(
    [sys.executable, *words[1:], f"--port={port}"],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    # Optimized as for a user: 216 tokens in time, also from a random model.
    env=os.environ | {"XLA_FLAGS": ""},
  )
  for line in service.stdout:
    if line.startswith("ready: "):
      return service
  raise AssertionError(service.stderr.read())


def test_every_program_says_what_it_did(said):
  assert "3 episodes, 32 steps" in said["data.import_lerobot"]
  assert "ERROR" not in said["data.check_episodes"]
  for name in ("terminate", *tiny_robots.TWO_ARMS):
    assert re.search(rf"^{name} .*\d", said["launch/evaluate.py"], re.M), name
  steps = re.search(r"after (\d+) steps", said["launch/robot.py"])[1]
  assert f"1 episodes, {steps} steps" in said["data.import_robot_log"]


def test_actions_are_those_of_both_arms_in_their_bounds(said, folder):
  """As the service answered, as the arms carried them out, as recorded."""
  demonstrated, acted = (
    SourceConfig("robot.json", str(folder / name / "1.0.0"))
    for name in ("arms", "arms_by_policy")
  )
  space = demonstrated.space
  assert acted.space.names == space.names
  assert space.names == ("terminate", *tiny_robots.TWO_ARMS)
  (path,) = (folder / "episodes").glob("*.npz")
  with np.load(path) as episode:
    actions, answers = episode["action"], episode["answer"]
    answers = answers[episode["answered"]]
  assert answers.shape[1:] == (8, 27) and len(answers)
  assert actions.shape[1:] == (27,)
  for found in (actions, answers.reshape(-1, 27)):
    for d, values in zip(space.dimensions, found.T, strict=True):
      if d.kind == "continuous":
        assert d.low - 1e-5 <= values.min() and values.max() <= d.high + 1e-5
  stored = open_source(acted, "train").index.action
  np.testing.assert_allclose(stored, actions, atol=1e-6)

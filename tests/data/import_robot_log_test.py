"""What a robot did becomes data: actions, corrections, how episodes end."""

import json

import numpy as np
import pytest

from data import import_program, import_robot_log
from data.import_program import Options
from rt2_jax import robot_log
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from rt2_jax.robot_loop import EpisodeLog, Step
from rt2_jax.serving.description import describe
from tests.serving import served

HZ = 5.0


@pytest.fixture(scope="module")
def said(tokenizer):
  route = tokenizer.action_route("rare")
  actions = ActionTokenizer(RT2, route, horizon=2)
  spec, sizes = ObservationSpec(), {"primary": served.SIZE}
  return describe(actions, spec, sizes, HZ, {})


def episode(seed: int, length: int, terminates: bool) -> EpisodeLog:
  """The third action is a person's; the others lie on centres of bins."""
  log = EpisodeLog(reason="terminate" if terminates else "over")
  rng = np.random.default_rng(seed)
  for i in range(length):
    action = np.float32([0, *rng.uniform(-0.5, 0.5, 6), i % 2])
    action[0] = terminates and i == length - 1
    seen = served.observation(10 * seed + i)
    log.steps.append(Step(seen, action, i % 2 == 0, i == 2, 0.0))
  return log


@pytest.fixture
def recorded(tmp_path, said):
  logs = [episode(1, 5, True), episode(2, 4, False)]
  for log in logs:
    robot_log.write(tmp_path / "episodes", log, said, HZ)
  return logs


def imported(tmp_path):
  recordings = import_robot_log.open_recordings(str(tmp_path / "episodes"))
  robot = str(tmp_path / "episodes/robot.json")
  options = Options("my_arm", num_workers=1, robot=robot)
  folder = import_program.import_recordings(
    recordings, tmp_path / "out", options
  )
  return SourceConfig("robot.json", str(folder))


def test_what_was_carried_out_is_what_is_trained_on(tmp_path, recorded, capsys):
  config = imported(tmp_path)
  assert "gripper" not in capsys.readouterr().out  # robot.json says that it is
  assert config.robot.space.dimensions == RT2.dimensions  # the same tokens
  assert config.robot.rate_hz == HZ
  source = open_source(config, "train", ObservationSpec())
  steps = [step for log in recorded for step in log.steps]
  assert len(source) == len(steps)
  for i, step in enumerate(steps):
    np.testing.assert_allclose(
      source.chunks([i], 1)[0][0], step.action, atol=1e-6
    )
    assert source.instruction(i) == step.observation.instruction


def test_only_a_policy_that_terminated_teaches_it(tmp_path, recorded):
  source = open_source(imported(tmp_path), "train", ObservationSpec())
  ends = [source.chunks([i], 1)[0][0, 0] for i in range(len(source))]
  assert ends == [0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_a_state_that_the_policy_does_not_read_is_left_out(tmp_path, said):
  log = episode(1, 3, True)
  state = np.zeros(7, np.float32)
  for i, step in enumerate(log.steps):
    seen = step.observation._replace(state=state)
    log.steps[i] = step._replace(observation=seen)
  robot_log.write(tmp_path / "episodes", log, said, HZ)
  source = open_source(imported(tmp_path), "train", ObservationSpec())
  assert len(source) == 3


def test_episodes_of_another_robot_are_named(tmp_path, recorded, said):
  other = said | {"action_units": ["mm"] * 8}
  log = episode(3, 3, True)
  robot_log.write(tmp_path / "episodes", log, other, HZ)
  recordings = import_robot_log.open_recordings(str(tmp_path / "episodes"))
  with pytest.raises(UserError, match="action_units"):
    recordings.read(2)


def test_a_folder_without_an_episode_is_named(tmp_path):
  (tmp_path / "robot.json").write_text(json.dumps({}))
  with pytest.raises(UserError, match="without an episode"):
    import_robot_log.open_recordings(str(tmp_path))

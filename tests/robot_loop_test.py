"""A robot's loop: chunks, holding, stopping, corrections and its log."""

import json
import time

import numpy as np
import pytest

from rt2_jax import robot_log
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import description
from rt2_jax.observation import Observation, ObservationSpec
from rt2_jax.robot_actions import Limits
from rt2_jax.robot_client import Reply, UnansweredError
from rt2_jax.robot_loop import ControlLoop, EpisodeLog, LoopConfig
from rt2_jax.serving.description import describe
from tests.serving import served

HORIZON = 4
HZ = 500.0


class Arm:
  """Records what it is told; each image is the number of actions so far."""

  def __init__(self, corrections=()):
    self.applied, self.held, self.stopped = [], 0, 0
    self.corrections = dict(corrections)
    self.over_at = None

  def observe(self):
    frame = np.full((1, 8, 8, 3), len(self.applied), np.uint8)
    return Observation({"primary": frame}, "go", np.float32([self.held]))

  def apply(self, action):
    self.applied.append(action)

  def hold(self):
    self.held += 1

  def stop(self):
    self.stopped += 1

  def position(self):
    return None

  def is_over(self):
    return len(self.applied) == self.over_at

  def correction(self):
    return self.corrections.get(len(self.applied))


class Service:
  """Answers that step i of an episode moves by (i + 1) cm.

  A `script` of delays and errors comes first. It terminates at step `end`.
  """

  def __init__(self, tokenizer, script=(), delay=0.0, end=6, horizon=HORIZON):
    route = tokenizer.action_route("rare")
    actions = ActionTokenizer(RT2, route, horizon=horizon)
    sizes = {"primary": (8, 8)}
    self.horizon, self.delay, self.end = horizon, delay, end
    self.said = describe(actions, ObservationSpec(), sizes, 5.0, {})
    self.script, self.asked, self.resets = list(script), [], []
    self.closed = 0

  def metadata(self):
    return self.said

  def act(self, observation, reset, timeout_s):
    step = int(observation.images["primary"][0, 0, 0, 0])
    self.asked.append(step)
    self.resets.append(reset)
    what = self.script.pop(0) if self.script else self.delay
    if isinstance(what, Exception):
      raise what
    time.sleep(what)
    actions = np.zeros((self.horizon, 8), np.float32)
    actions[:, 1] = 0.01 * (step + 1 + np.arange(self.horizon))
    actions[:, 0] = step + np.arange(self.horizon) >= self.end
    return Reply(actions, "")

  def close(self):
    self.closed += 1


def run(arm, service, **config):
  config = LoopConfig(**{"rate_hz": HZ} | config)
  limits = Limits.of(service.metadata())
  log = EpisodeLog()
  ControlLoop(arm, service, limits, config).run(log)
  return log


def motions(actions):
  return [round(100 * float(a[1])) for a in actions]


@pytest.mark.parametrize("delay", [0.0, 0.015])
@pytest.mark.parametrize("execute", [1, 3, 4])
def test_each_step_gets_its_own_action(tokenizer, delay, execute):
  """A chunk that comes late is not carried out from its beginning."""
  arm, service = Arm(), Service(tokenizer, delay=delay)
  log = run(arm, service, execute=execute)
  assert log.reason == "terminate" and arm.stopped == service.closed == 1
  assert motions(arm.applied) == [1, 2, 3, 4, 5, 6]
  assert len(log.steps) == 7 and log.steps[-1].action[0] == 1.0
  gaps = np.diff(service.asked)
  assert (gaps >= execute).all()


def test_a_chunk_is_carried_out_while_the_next_is_computed(tokenizer):
  arm, service = Arm(), Service(tokenizer, delay=0.05, end=99)
  log = run(arm, service, rate_hz=50, max_steps=12)
  assert log.reason == "max_steps" and motions(arm.applied) == [*range(1, 13)]
  # Without it every step of 20 ms would wait 50 ms for its answer.
  assert sum(step.held_s > 0 for step in log.steps) <= 4
  assert len(service.asked) < 12


@pytest.mark.parametrize("execute", [1, 2])
def test_a_robot_that_waits_acts_on_what_it_sees(tokenizer, execute):
  arm, service = Arm(), Service(tokenizer, delay=0.008)
  log = run(arm, service, execute=execute, waits=True)
  assert motions(arm.applied) == [1, 2, 3, 4, 5, 6]
  assert service.asked == list(range(0, 7, execute))
  held = [step.held_s > 0 for step in log.steps]
  assert held == [step.asked for step in log.steps]


def test_a_policy_of_single_actions_is_asked_at_every_step(tokenizer):
  arm, service = Arm(), Service(tokenizer, delay=0.005, horizon=1)
  run(arm, service)
  assert service.asked == list(range(7))
  assert motions(arm.applied) == [1, 2, 3, 4, 5, 6]
  assert service.resets == [True] + [False] * 6


def test_without_an_answer_the_robot_holds_and_asks_again(tokenizer):
  script = [UnansweredError("full"), UnansweredError("slow"), 0.0]
  arm, service = Arm(), Service(tokenizer, script, horizon=1)
  log = run(arm, service)
  assert motions(arm.applied) == [1, 2, 3, 4, 5, 6] and arm.held >= 2
  assert service.asked == [0, 0, *range(7)]
  assert service.resets[:4] == [True, True, True, False]
  assert log.steps[0].held_s >= 2 / HZ
  # What it acts on was seen after it had held.
  assert log.steps[0].observation.state[0] >= 2


def test_a_person_is_told_once_why_the_robot_holds(tokenizer, caplog):
  full, gone = UnansweredError("full"), UnansweredError("gone")
  script = [full, full, gone, 0.0, gone]
  run(Arm(), Service(tokenizer, script, horizon=1))
  told = [record.getMessage().split()[-1] for record in caplog.records]
  assert told == ["full", "gone", "gone"]


@pytest.mark.parametrize("robot", [None, type("Half", (), {"observe": None})()])
def test_a_robot_without_some_methods_is_named(tokenizer, robot):
  with pytest.raises(UserError, match="without .*apply, hold, stop"):
    run(robot, Service(tokenizer))


def test_a_refusal_stops_the_robot(tokenizer):
  arm, service = Arm(), Service(tokenizer, [UserError("wrong camera")])
  log = EpisodeLog()
  loop = ControlLoop(
    arm, service, Limits.of(service.metadata()), LoopConfig(HZ)
  )
  with pytest.raises(UserError, match="wrong camera"):
    loop.run(log)
  assert arm.stopped == 1 and not arm.applied and log.reason == "refused"


def test_whatever_ends_an_episode_the_robot_stops(tokenizer):
  class Broken(Arm):
    def apply(self, action):
      raise KeyboardInterrupt

  arm, service, log = Broken(), Service(tokenizer), EpisodeLog()
  limits = Limits.of(service.metadata())
  with pytest.raises(KeyboardInterrupt):
    ControlLoop(arm, service, limits, LoopConfig(HZ)).run(log)
  assert arm.stopped == 1 and log.reason == "interrupted"


def test_actions_are_clipped_to_the_space(tokenizer):
  arm, service = Arm({0: np.full(8, 9.0) * (np.arange(8) > 0)}), None
  service = Service(tokenizer)
  run(arm, service)
  np.testing.assert_allclose(
    arm.applied[0][1:], service.said["action_high"][1:]
  )


def test_a_person_may_end_an_episode(tokenizer):
  arm, service = Arm(), Service(tokenizer)
  arm.over_at = 3
  log = run(arm, service)
  assert log.reason == "over" and len(arm.applied) == 3 and arm.stopped == 1


def test_a_person_may_correct_a_step(tokenizer):
  mine = np.float32([0, -0.3, 0, 0, 0, 0, 0, 1])
  arm, service = Arm({2: mine}), Service(tokenizer)
  log = run(arm, service)
  assert motions(arm.applied) == [1, 2, -30, 4, 5, 6]
  corrected = [step.is_correction for step in log.steps]
  assert corrected == [False, False, True, False, False, False, False]


@pytest.mark.parametrize("config", [{"execute": 5}, {"execute": 0}])
def test_a_chunk_has_the_actions_to_execute(tokenizer, config):
  with pytest.raises(UserError, match="execute"):
    run(Arm(), Service(tokenizer), **config)


def test_an_episode_is_written_and_read(tokenizer, tmp_path):
  mine = np.float32([0, -0.3, 0, 0, 0, 0, 0, 1])
  script = [UnansweredError("full")]
  arm, service = Arm({2: mine}), Service(tokenizer, script)
  log = run(arm, service, execute=3)
  paths = [robot_log.write(tmp_path, log, service.said, HZ) for _ in range(2)]
  assert robot_log.files(tmp_path) == paths
  about, arrays = robot_log.read(paths[0])
  assert about["reason"] == "terminate" and about["rate_hz"] == HZ
  assert about["metadata"]["action_units"] == service.said["action_units"]
  assert about["instructions"] == ["go"] * 7
  fields = json.loads((tmp_path / robot_log.DESCRIPTION).read_text())
  described = description.parse(fields, "robot.json").to_dataset()
  assert described.space.dimensions == RT2.dimensions
  assert described.rate_hz == HZ
  assert motions(arrays["action"]) == [1, 2, -30, 4, 5, 6, 7]
  assert arrays["is_correction"].tolist() == [i == 2 for i in range(7)]
  np.testing.assert_array_equal(
    arrays["image_primary"][:, 0, 0, 0], np.arange(7)
  )
  assert arrays["state"].shape == (7, 1)
  # Each question's answer stands at its step.
  asked = np.flatnonzero(arrays["answered"])
  assert set(asked) <= set(np.flatnonzero(arrays["asked"]))
  for step in asked:
    expected = [step + 1, step + 2, step + 3, step + 4]
    assert motions(arrays["answer"][step]) == expected


def test_a_driver_may_write_each_frame_into_the_same_array(tokenizer):
  class Driver(Arm):
    frame, joints = np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.float32)

    def observe(self):
      self.frame[:] = self.joints[:] = len(self.applied)
      return Observation({"primary": self.frame}, "go", self.joints)

  log = run(Driver(), Service(tokenizer))
  seen = [step.observation for step in log.steps]
  assert [each.images["primary"].max() for each in seen] == list(range(7))
  assert [each.state[0] for each in seen] == list(range(7))


def test_an_image_without_its_axis_of_frames_is_not_recorded(tokenizer):
  class Flat(Arm):
    def observe(self):
      seen = super().observe()
      return seen._replace(images={"primary": seen.images["primary"][0]})

  arm = Flat()
  with pytest.raises(UserError, match=r"uint8\[8, 8, 3\].*uint8\[1, H, W, 3\]"):
    run(arm, Service(tokenizer))
  assert arm.stopped == 1 and not arm.applied


def test_an_episode_without_a_step_is_not_written(tokenizer, tmp_path):
  said = Service(tokenizer).said
  assert robot_log.write(tmp_path, EpisodeLog(), said, HZ) is None


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_another_file_is_named(tmp_path, content):
  path = tmp_path / "episode_000000.npz"
  if content is None:
    np.savez(path, about=np.asarray([{}], object))
  else:
    path.write_bytes(content)
  with pytest.raises(UserError, match="no episode of"):
    robot_log.read(path)


def test_a_damaged_episode_is_named(tokenizer, tmp_path):
  log, said = run(Arm(), Service(tokenizer)), Service(tokenizer).said
  path = robot_log.write(tmp_path, log, said, HZ)
  whole = path.read_bytes()
  flipped = bytes([whole[100] ^ 255])
  for damaged in (
    whole[: len(whole) // 2],
    whole[:100] + flipped + whole[101:],
  ):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="no episode of"):
      robot_log.read(path)


def test_the_loop_drives_a_robot_by_a_real_service(tokenizer):
  """An image's pixels decide the action; the last one terminates."""
  policy = served.MarkedPolicy(tokenizer)
  images = [served.image(seed) for seed in range(5)]
  for i, image in enumerate(images):
    image[0, 0, 0] = image[0, 2, 2] = 0 if i == 4 else 1  # terminate, 0 = yes

  class Camera(Arm):
    def observe(self):
      frame = images[min(len(self.applied), 4)]
      return Observation({"primary": frame[None]}, "go")

  with served.running(policy) as running:
    from rt2_jax.robot_client import RobotClient

    client = RobotClient(f"ws://127.0.0.1:{running.port}")
    arm, log = Camera(), EpisodeLog()
    limits = Limits.of(client.metadata())
    ControlLoop(arm, client, limits, LoopConfig(50)).run(log)
  # The chunk before the last image has one more action.
  assert log.reason == "terminate" and len(arm.applied) in (4, 5)
  for step in log.answers:
    expected = served.marked(policy, images[min(step, 4)])
    np.testing.assert_array_equal(log.answers[step], expected)


@pytest.mark.parametrize("execute", [1, 2, 4])
def test_a_history_is_of_the_robots_own_steps(tokenizer, execute):
  """Also of those at which nothing was asked, or the answer came late."""

  class Recorder(Service):
    def act(self, observation, reset, timeout_s):
      frames = observation.images["primary"]
      self.frames.append(frames[:, 0, 0, 0].tolist())
      newest = {"primary": frames[-1:]}
      return super().act(observation._replace(images=newest), reset, timeout_s)

  script = [UnansweredError("full"), 0.0, UnansweredError("slow")]
  service = Recorder(tokenizer, script, end=9)
  service.said |= {"history": 3}
  service.frames = []
  log = run(Arm(), service, execute=execute)
  expected = [[max(0, i - 2), max(0, i - 1), i] for i in service.asked]
  assert service.frames == expected
  assert {len(s.observation.images["primary"]) for s in log.steps} == {1}

"""A robot's control loop: acts at a stated rate, asks a service meanwhile.

A chunk is carried out while the next one is computed, unless the robot is to
wait for that. Where chunks overlap they may be averaged (temporal ensemble).
Without an action in time the robot holds.

Time is counted in steps, that is, in actions carried out: a robot that holds
does not use up its chunk.

Shapes: H actions of a chunk (the horizon), D dimensions of an action.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.observation import History, Observation
from rt2_jax.robot_actions import Chunks, Limits
from rt2_jax.robot_client import Reply, RobotClient, UnansweredError

_log = logging.getLogger(__name__)


class Robot(Protocol):
  """What the loop needs of an arm. `hold` and `stop` must not raise."""

  def observe(self) -> Observation:
    """Returns one frame of each camera, the instruction and the state."""

  def apply(self, action: np.ndarray) -> None:
    """Carries out an action, float32[D], within one period of the loop."""

  def hold(self) -> None:
    """Stays where it is for one period."""

  def stop(self) -> None:
    """Ends the episode: stays where it is until the next one."""

  def position(self) -> np.ndarray | None:
    """Returns x y z in metres, float[3]; None where it is not known."""

  def is_over(self) -> bool:
    """Returns whether a person, or the world, has ended the episode."""

  def correction(self) -> np.ndarray | None:
    """Returns a person's action in place of the policy's, float32[D]."""


class Step(NamedTuple):
  """One step of an episode.

  Attributes:
    observation: that the action follows, or the question.
    action: float32[D], carried out.
    asked: whether the service was asked with this observation.
    is_correction: whether a person chose the action.
    held_s: seconds that the robot held before it.
  """

  observation: Observation
  action: np.ndarray
  asked: bool
  is_correction: bool
  held_s: float


@dataclasses.dataclass
class EpisodeLog:
  """What happened in an episode, for a recorder.

  Attributes:
    steps: in order.
    answers: float32[H, D] by the number of the step whose observation asked.
    plans: in words, likewise.
    unanswered: why a question got no answer, likewise.
    reason: "terminate" by the policy, "over" by the robot, "max_steps",
      "refused" where the robot and the service do not fit, or "interrupted".
  """

  steps: list[Step] = dataclasses.field(default_factory=list)
  answers: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
  plans: dict[int, str] = dataclasses.field(default_factory=dict)
  unanswered: dict[int, str] = dataclasses.field(default_factory=dict)
  reason: str = ""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """How a loop runs.

  Attributes:
    rate_hz: periods per second.
    execute: steps after which the service is asked again, 1 to H.
    waits: holds until a question is answered, as rollouts do, instead of going
      on with the last chunk: no action follows an older observation.
    decay: see `Chunks`.
    timeout_s: an answer that takes longer is given up, and asked for again.
    max_steps: ends an episode that does not terminate.
  """

  rate_hz: float
  execute: int = 1
  waits: bool = False
  decay: float | None = None
  timeout_s: float = 2.0
  max_steps: int = 1000


class ControlLoop:
  """Runs episodes of one robot."""

  def __init__(
    self,
    robot: Robot,
    client: RobotClient,
    limits: Limits,
    config: LoopConfig,
    sleep: Callable[[float], None] = time.sleep,
  ):
    """Compares the configuration with the service's horizon.

    Raises:
      UserError: an `execute` that no chunk has, no rate, or a robot without
        some of the methods.
      UnansweredError: no service.
    """
    needed = [name for name in vars(Robot) if not name.startswith("_")]
    if missing := [name for name in needed if not hasattr(robot, name)]:
      raise UserError(
        f"got a robot of type {type(robot).__name__} without "
        f"{', '.join(missing)}, expected the methods {', '.join(needed)}; see "
        "rt2_jax.robot_loop.Robot"
      )
    self._metadata = client.metadata()
    horizon = self._metadata["action_horizon"]
    if not 1 <= config.execute <= horizon or not config.rate_hz > 0:
      raise UserError(
        f"got execute = {config.execute} at {config.rate_hz} Hz, expected 1 to "
        f"{horizon}, the actions of a chunk, and a rate above 0"
      )
    if "terminate" in limits.names:
      self._terminate = limits.names.index("terminate")
    else:
      self._terminate = None
    self._robot, self._client = robot, client
    self._limits, self._config = limits, config
    self._sleep = sleep

  def run(self, log: EpisodeLog) -> None:
    """Runs one episode, and stops the robot at its end, whatever ends it.

    Args:
      log: empty; is filled as things happen, so that nothing is lost.

    Raises:
      UserError: the service refuses the robot's observations, or the robot
        says what cannot be.
    """
    episode = _Episode(self._metadata, self._config)
    with concurrent.futures.ThreadPoolExecutor(1, "client") as thread:
      try:
        due = time.monotonic()
        while not log.reason:
          self._period(episode, log, thread)
          due += 1 / self._config.rate_hz
          self._sleep(max(0.0, due - time.monotonic()))
          due = max(due, time.monotonic() - 1 / self._config.rate_hz)
      except UserError:
        log.reason = "refused"
        raise
      finally:
        log.reason = log.reason or "interrupted"
        self._robot.stop()
        self._client.close()

  def _period(
    self,
    episode: _Episode,
    log: EpisodeLog,
    thread: concurrent.futures.Executor,
  ) -> None:
    """Collects an answer, asks, and carries out an action or holds."""
    if self._robot.is_over():
      log.reason = "over"
      return
    episode.collect(log)
    if episode.seen is None:
      episode.seen = _kept(self._robot.observe())
    if episode.wants_answer():
      episode.ask(thread, self._client, log)
    action = self._robot.correction()
    is_correction = action is not None
    if not is_correction and not episode.holds():
      action = episode.chunks.action(episode.step)
    if action is None:
      self._robot.hold()
      episode.held_s += 1 / self._config.rate_hz
      return
    ends = self._terminate is not None and action[self._terminate] > 0.5
    action = self._limits.apply(
      action, self._robot.position(), 1 / self._config.rate_hz
    )
    if not ends:
      self._robot.apply(action)
    log.steps.append(episode.finish_step(action, is_correction))
    if ends:
      log.reason = "terminate"
    elif episode.step >= self._config.max_steps:
      log.reason = "max_steps"


def _kept(observation: Observation) -> Observation:
  """Copies what a robot shows: drivers reuse the array of a frame.

  Raises:
    UserError: images without their axis of frames, of which a row of pixels
      would be taken for a frame.
  """
  images = {name: np.array(each) for name, each in observation.images.items()}
  for camera, frames in images.items():
    if frames.ndim != 4:
      raise UserError(
        f"got {frames.dtype}{list(frames.shape)} from camera {camera!r} of the "
        "robot, expected uint8[1, H, W, 3], one frame; return image[None] from "
        "its method `observe`"
      )
  state = observation.state
  if state is not None:
    state = np.array(state, np.float32)
  return observation._replace(images=images, state=state)


class _Episode:
  """Where an episode stands.

  Attributes:
    step: actions carried out so far.
    seen: the observation of this step; None until it is made.
    chunks: the service's answers.
    held_s: seconds that the robot has held before this step.
  """

  def __init__(self, metadata: Mapping[str, Any], config: LoopConfig):
    self._config = config
    self._history = metadata["history"]
    self._pending: concurrent.futures.Future[Reply] | None = None
    self._asked_at = -1  # the step whose observation was sent last
    self._next_ask = 0
    self._is_first = True  # until the service has answered
    self._missing = ""  # why there is no answer now
    self.step = 0
    self.seen: Observation | None = None
    self.chunks = Chunks(metadata, config.decay)
    self.held_s = 0.0

  def wants_answer(self) -> bool:
    """Whether it is time to ask, and no question is open."""
    return self._pending is None and self.step >= self._next_ask

  def holds(self) -> bool:
    """Whether the robot is to wait for an open question."""
    return self._config.waits and self._pending is not None

  def ask(
    self,
    thread: concurrent.futures.Executor,
    client: RobotClient,
    log: EpisodeLog,
  ) -> None:
    """Sends this step's observation and its history, in a thread."""
    self._asked_at = self.step
    self._next_ask = self.step + self._config.execute
    log.unanswered.pop(self.step, None)
    self._pending = thread.submit(
      client.act,
      self._with_history(log.steps),
      self._is_first,
      self._config.timeout_s,
    )

  def _with_history(self, steps: Sequence[Step]) -> Observation:
    """Adds the frames of the steps before this one, as in training.

    The service itself knows those alone that it was asked with: fewer, and
    some of them twice after a question without an answer.
    """
    history = History(self._history)
    for step in steps[max(0, len(steps) - self._history + 1) :]:
      history.add(step.observation)
    return history.add(self.seen)

  def collect(self, log: EpisodeLog) -> None:
    """Takes the answer, if there is one.

    Raises:
      UserError: the service refuses what was sent.
    """
    if self._pending is None or not self._pending.done():
      return
    pending, self._pending = self._pending, None
    try:
      reply = pending.result()
    except UnansweredError as error:
      log.unanswered[self._asked_at] = str(error)
      if str(error) != self._missing:  # a person wonders why the robot holds
        _log.error("no answer, asking again: %s", error)
      self._missing = str(error)
      self._next_ask = self.step
      if self._asked_at == self.step:
        self.seen = None  # it has become old
      return
    self._is_first, self._missing = False, ""
    log.answers[self._asked_at] = reply.actions
    log.plans[self._asked_at] = reply.plan
    self.chunks.add(self._asked_at, reply.actions)

  def finish_step(self, action: np.ndarray, is_correction: bool) -> Step:
    """Goes on to the next step; returns the record of this one."""
    asked = self._asked_at == self.step
    done = Step(self.seen, action, asked, is_correction, self.held_s)
    self.step += 1
    self.seen, self.held_s = None, 0.0
    return done

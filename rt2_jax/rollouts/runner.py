"""Runs a policy on trials and records how they end.

Many environments step in parallel. One call of the policy serves all robots
whose last chunk of actions has been carried out.

Shapes: B environments, H actions of a chunk (the horizon), D dimensions.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.observation import History, Observation, ObservationSpec
from rt2_jax.rollouts.simulation import (
  Begin,
  Broken,
  Expert,
  Lost,
  Request,
  Seen,
  Simulations,
  Step,
  has_ended,
)
from rt2_jax.rollouts.trial import BROKEN_OFF, Act, Benchmark, Trial


@dataclasses.dataclass
class Rollout:
  """The record of a trial.

  Attributes:
    trial: the trial.
    success: whether the instruction was fulfilled.
    reason: one of the benchmark's reasons, or `BROKEN_OFF`.
    details: as in `trial.Outcome`.
    steps: number of actions taken.
    plan: what the policy wrote before its first action, or "".
    error: what broke the trial off, or "".
    images: of the first camera at every step, uint8[H, W, 3]; empty unless the
      trial is filmed.
    control_hz: images per second.
    film: path of a file with the images, or "".
  """

  trial: Trial
  success: bool = False
  reason: str = BROKEN_OFF
  details: dict[str, Any] = dataclasses.field(default_factory=dict)
  steps: int = 0
  plan: str = ""
  error: str = ""
  images: list[np.ndarray] = dataclasses.field(default_factory=list)
  control_hz: float = 0.0
  film: str = ""

  @property
  def capped(self) -> bool:
    """Whether a step limit ended the trial, not the policy."""
    return bool(self.details.get("capped", False))


@dataclasses.dataclass
class _Robot:
  """A slot's running trial.

  Attributes:
    rollout: its record.
    history: its last frames.
    seen: the newest observation; None until the trial has begun.
    actions: the rest of its chunk.
    last_chunk: float32[H, D], drafts the next one; None before the first.
  """

  rollout: Rollout
  history: History
  seen: Observation | None = None
  actions: collections.deque[np.ndarray] = dataclasses.field(
    default_factory=collections.deque
  )
  last_chunk: np.ndarray | None = None


def run(
  act: Act | None,
  trials: Sequence[Trial],
  benchmark: Benchmark,
  num_envs: int,
  num_processes: int | None = None,
  *,
  spec: ObservationSpec | None = None,
  execute: int = 1,
  num_filmed: int = 0,
  expert: Callable[[Trial], Trial] | None = None,
  drafted: bool = False,
) -> Iterator[Rollout]:
  """Tries a policy on trials, and yields each as it ends.

  The policy is always called with B = `num_envs` rows, so that it is compiled
  once; rows that are not needed repeat another.

  Args:
    act: the policy; None for the scripted expert.
    trials: what to try it on.
    benchmark: makes the environments, in worker processes.
    num_envs: environments stepped at once.
    num_processes: workers; default: one for each CPU.
    spec: the part of an observation that the policy reads; default: all that
      the benchmark shows.
    execute: actions of a chunk that are carried out before the policy is
      called again, 1 to H.
    num_filmed: of each suite, the first so many trials keep their images.
    expert: the trial that the scripted expert carries out; default: the real
      one.
    drafted: whether the policy also takes each robot's last chunk, or None, as
      `RobotPolicy.decide` does.

  Raises:
    UserError: a policy that reads what the benchmark does not show, actions
      of another shape, an `execute` that no chunk has, or environments that
      cannot be made.
  """
  spec = spec or benchmark.spec
  check_spec(spec, benchmark.spec)
  waiting = collections.deque(trials)
  robots: dict[int, _Robot] = {}
  num_envs = min(num_envs, len(trials))
  dimensions = benchmark.action_space.names
  with Simulations(benchmark, num_envs, num_processes) as simulations:
    while waiting or robots:
      requests: dict[int, Request] = {}
      if act is not None:
        _decide(act, robots, num_envs, execute, dimensions, drafted)
      for slot in range(num_envs):
        if slot not in robots and waiting:
          rollout = Rollout(
            waiting.popleft(), control_hz=simulations.control_hz
          )
          robots[slot] = _Robot(rollout, History(spec.history))
        if slot in robots:
          requests[slot] = _request(robots[slot], act is None, expert)
      for slot, reply in simulations.exchange(requests).items():
        robot = robots[slot]
        _record(robot, reply, spec, benchmark.spec, num_filmed)
        if has_ended(reply):
          yield robots.pop(slot).rollout


def check_spec(spec: ObservationSpec, shown: ObservationSpec) -> None:
  """Checks that a benchmark shows what a policy reads.

  Raises:
    UserError: a camera or a number of the state is missing.
  """
  if set(spec.present) - set(shown.cameras):
    raise UserError(
      f"got a policy that reads the cameras {spec.present}, expected some of "
      f"the benchmark's: {list(shown.cameras)}; choose another policy or "
      "benchmark"
    )
  wanted = spec.state.names if spec.state else ()
  given = shown.state.names if shown.state else ()
  if wanted and wanted != given:
    raise UserError(
      f"got a policy that reads the state {list(wanted)}, expected that of the "
      f"benchmark: {list(given)}; choose another policy or benchmark"
    )


def _decide(
  act: Act,
  robots: dict[int, _Robot],
  num_envs: int,
  execute: int,
  dimensions: Sequence[str],
  drafted: bool,
) -> None:
  """Gives a new chunk to the robots that have carried out their last one."""
  asking = [r for r in robots.values() if r.seen is not None and not r.actions]
  if not asking:
    return
  rows = asking + asking[:1] * (num_envs - len(asking))
  drafts = [[robot.last_chunk for robot in rows]] if drafted else []
  answer = act([robot.seen for robot in rows], *drafts)
  plans, chunks = answer[:2] if isinstance(answer, tuple) else ((), answer)
  chunks = np.asarray(chunks)
  if chunks.ndim != 3 or chunks.shape[::2] != (num_envs, len(dimensions)):
    raise UserError(
      f"got actions {list(chunks.shape)} from the policy, expected "
      f"[{num_envs}, H, {len(dimensions)}]: chunks of H actions of "
      f"{', '.join(dimensions)}"
    )
  if not 1 <= execute <= chunks.shape[1]:
    raise UserError(
      f"got execute = {execute}, expected 1 to {chunks.shape[1]}, the actions "
      "of the policy's chunk"
    )
  for i, robot in enumerate(asking):
    robot.actions.extend(chunks[i, :execute])
    robot.last_chunk = chunks[i]
  for robot, plan in zip(asking, plans, strict=False):
    robot.rollout.plan = robot.rollout.plan or plan


def _request(
  robot: _Robot, is_expert: bool, expert: Callable[[Trial], Trial] | None
) -> Request:
  trial = robot.rollout.trial
  if robot.seen is None:
    return Begin(trial)
  if is_expert:
    return Expert(expert(trial) if expert else trial)
  return Step(robot.actions.popleft())


def _record(
  robot: _Robot,
  reply: Seen | Broken | Lost,
  spec: ObservationSpec,
  shown: ObservationSpec,
  num_filmed: int,
) -> None:
  """Writes down what an environment replied."""
  rollout = robot.rollout
  if isinstance(reply, Broken):
    rollout.error, rollout.steps = reply.error, 0
    return
  if isinstance(reply, Lost):  # from its first observation again
    robot.history, robot.seen = History(spec.history), None
    robot.actions.clear()
    robot.last_chunk = None
    rollout.images.clear()
    rollout.steps = 0
    return
  rollout.steps += robot.seen is not None
  if rollout.trial.number < num_filmed:
    rollout.images.append(reply.observation.images[shown.cameras[0]][-1])
  robot.seen = robot.history.add(_read(reply.observation, spec))
  if reply.outcome:
    rollout.success, rollout.reason, rollout.details = reply.outcome


def _read(observation: Observation, spec: ObservationSpec) -> Observation:
  """Returns the part of an observation that a policy reads."""
  images = {camera: observation.images[camera] for camera in spec.present}
  return Observation(
    images, observation.instruction, observation.state if spec.state else None
  )

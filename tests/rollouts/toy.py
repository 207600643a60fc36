"""A benchmark of numpy alone: a robot on a line is to go to a place.

Runs under any Python that workers may have. Cameras show the time and the
place; a trial's option "fault" breaks its third step.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.observation import Observation, ObservationSpec
from rt2_jax.rollouts.trial import (
  Baseline,
  Benchmark,
  Outcome,
  SuiteInfo,
  Trial,
)

SPACE = ActionSpace(
  "toy",
  "line",
  (
    Dimension("stop", "yes/no", values=(1.0, 0.0)),
    Dimension("dx", "m", -1.0, 1.0),
  ),
)
STATE = ActionSpace("toy_state", "line", (Dimension("x", "m", 0.0, 10.0),))
MAX_STEPS = 6
FAULTY_STEP = 3


class ToyEnvironment:
  """Actions are (stop, dx); success is to stop within 0.25 m of the goal."""

  control_hz = 4.0

  def reset(self, trial):
    self._trial, self._x, self._count = trial, 0.0, 0
    return self._observe()

  def step(self, action):
    stop, dx = action
    self._count += 1
    if self._count == FAULTY_STEP:
      fail(self._trial.options.get("fault", ""))
    if stop < 0.5:
      self._x += float(np.clip(dx, -1.0, 1.0))
    capped = bool(stop < 0.5 and self._count >= MAX_STEPS)
    if stop < 0.5 and not capped:
      return self._observe(), None
    near = abs(self._x - self._trial.options["goal"]) < 0.25
    details = {"capped": capped, "executable": sys.executable}
    reason = "there" if near else "elsewhere"
    return self._observe(), Outcome(near, reason, details)

  def expert(self, trial):
    way = trial.options["goal"] - self._x
    return np.array([abs(way) < 0.25, np.clip(way, -1, 1)], np.float32)

  def _observe(self):
    images = {
      "primary": np.full((1, 8, 8, 3), self._count, np.uint8),
      "wrist": np.full((1, 4, 6, 3), round(self._x), np.uint8),
    }
    state = np.array([self._x], np.float32)
    return Observation(images, self._trial.instruction, state)


def fail(fault):
  if fault == "throw":
    raise OSError("the camera's cable is loose")
  if fault == "die":
    os.kill(os.getpid(), signal.SIGKILL)
  if fault == "hang":
    time.sleep(600)


def rest(observations):
  """Never moves; chunks of two actions."""
  return np.zeros((len(observations), 2, 2), np.float32)


def farther(trial):
  goal = trial.options["goal"] + 1
  return trial._replace(options={**trial.options, "goal": goal})


class Toy(Benchmark):
  title = "the line"
  notes = "A robot on a line."
  action_space = SPACE
  spec = ObservationSpec(cameras=("primary", "wrist"), state=STATE)
  suites = {  # noqa: RUF012
    "near": SuiteInfo("near", "easy places", "places"),
    "middle": SuiteInfo("middle", "easy places", "places"),
    "far": SuiteInfo("far", "far", "far"),
  }
  reasons = ("there", "elsewhere")
  baselines = {  # noqa: RUF012
    "rest": Baseline("never moves", rest),
    "past": Baseline("goes too far", expert=farther),
    "expert": Baseline("the expert"),
  }
  means = {"mean of both": ("easy places", "far")}  # noqa: RUF012

  def __init__(self, python="", faults=()):
    """`faults`: (suite, number, fault) of trials that break."""
    self.python = python
    self._faults = tuple(faults)

  def trials(self, suites, count, seed):
    return [self._trial(s, n, seed) for n in range(count) for s in suites]

  def _trial(self, suite, number, seed):
    goal = {"near": 1.0, "middle": 2.0, "far": 4.0}[suite]
    options = {"goal": goal}
    for of_suite, of_number, fault in self._faults:
      if (of_suite, of_number) == (suite, number):
        options["fault"] = fault
    tags = {"parity": "even" if number % 2 == 0 else "odd"}
    instruction = f"go to {goal:.0f}, try {number}"
    return Trial(suite, number, seed + number, instruction, options, tags)

  def make(self):
    return ToyEnvironment()

  def goal(self, trial):
    return f"{trial.options['goal']:.0f} m"

  def plan_is_right(self, trial, plan):
    return plan == f"x = {trial.options['goal']:.0f}"


benchmark = Toy()


def act(observations):
  """Goes on to its instruction's place, in chunks of two actions."""
  chunks = []
  for seen in observations:
    way = float(seen.instruction.split(",")[0].split()[-1]) - seen.state[0]
    first = [abs(way) < 0.25, np.clip(way, -1, 1)]
    left = way - first[1]
    chunks.append([first, [abs(left) < 0.25, np.clip(left, -1, 1)]])
  return np.array(chunks, np.float32)

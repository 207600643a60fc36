"""Contract between rollouts and simulators: Trial, Environment, Benchmark.

A simulator is added by a subclass of `Benchmark` and an `Environment`; nothing
else in `rollouts` knows a simulator. Environments run in worker processes,
possibly under another interpreter: this file needs numpy and Python 3.9 alone.

Shapes: D dimensions of an action, H actions of a chunk (the horizon), B robots.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.observation import Observation, ObservationSpec

BROKEN_OFF = "broken off"  # reason of a trial whose environment threw or died

# Observations of B robots -> float32[B, H, D] in the units of the benchmark's
# action space. A policy that plans in words may return (B plans, actions).
Act = Callable[[Sequence[Observation]], Any]


class Trial(NamedTuple):
  """One evaluation episode.

  Attributes:
    suite: name of its suite.
    number: within the suite.
    seed: of the environment.
    instruction: what the robot is asked to do.
    options: JSON values that the environment's reset reads.
    tags: properties by which tables group trials, such as {"family": "pick"}.
  """

  suite: str
  number: int
  seed: int
  instruction: str
  options: Mapping[str, Any]
  tags: Mapping[str, str]


class Outcome(NamedTuple):
  """The end of a trial.

  Attributes:
    success: whether the instruction was fulfilled.
    reason: one of the benchmark's `reasons`.
    details: further JSON values for the results' file. `capped` is true where
      a step limit ended the trial, not the policy.
  """

  success: bool
  reason: str
  details: Mapping[str, Any]


class SuiteInfo(NamedTuple):
  """A set of trials, as tables show it.

  Attributes:
    title: the row's name.
    group: suites of a group are averaged in the report.
    topic: suites of a topic are pooled in the summary.
  """

  title: str
  group: str
  topic: str


class Baseline(NamedTuple):
  """A reference to compare policies with.

  Attributes:
    description: what it does, in words.
    act: its actions; None for the environment's scripted expert.
    expert: the trial that the expert acts for, given the real one; None for
      the real one.
  """

  description: str
  act: Act | None = None
  expert: Callable[[Trial], Trial] | None = None


class Environment(Protocol):
  """A simulated robot, in a worker process.

  Attributes:
    control_hz: steps per second of the real robot.
  """

  control_hz: float

  def reset(self, trial: Trial) -> Observation:
    """Begins a trial. Returns an observation with one frame per camera."""

  def step(self, action: np.ndarray) -> tuple[Observation, Outcome | None]:
    """Takes one action, float32[D]. The outcome is None until the end."""

  def expert(self, trial: Trial) -> np.ndarray | None:
    """Returns the scripted expert's next action, float32[D].

    Args:
      trial: the task that the expert carries out; the scene stays that of the
        last reset.

    Returns:
      None where there is no expert.
    """


class Benchmark(Protocol):
  """A simulator with its suites of trials.

  Subclasses inherit the attributes and methods that have defaults. Workers
  receive a benchmark by pickle.

  Attributes:
    title: names it in the report's title.
    notes: a paragraph for the report: how success is judged.
    action_space: the meaning of an action's numbers.
    spec: the cameras and the state that its environments show.
    suites: by name.
    reasons: why trials end, the success first.
    baselines: by name.
    settings: JSON values beside the trials that change results.
    means: rows of the report that average groups: title -> names of groups.
    python: path of the workers' interpreter; "" for the running one. It needs
      numpy and the benchmark's own packages.
  """

  action_space: ActionSpace
  spec: ObservationSpec
  suites: Mapping[str, SuiteInfo]
  reasons: Sequence[str]
  baselines: Mapping[str, Baseline] = {}
  title: str = ""
  notes: str = ""
  settings: Mapping[str, Any] = {}
  means: Mapping[str, Sequence[str]] = {}
  python: str = ""

  def trials(self, suites: Sequence[str], count: int, seed: int) -> list[Trial]:
    """Draws `count` trials of each suite; every policy meets the same."""

  def make(self) -> Environment:
    """Makes an environment, in a worker process."""

  def goal(self, trial: Trial) -> str:
    """Returns the goal in few words, for a film's caption; "" for none."""
    return ""

  def plan_is_right(self, trial: Trial, plan: str) -> bool | None:
    """Judges a plan in words; None where the benchmark cannot."""
    return None

  def fingerprint(self, trials: Sequence[Trial]) -> str:
    """Hashes all that policies meet. Results compare where hashes are equal.

    Returns:
      Sixteen hex digits.
    """
    return fingerprint([trial._asdict() for trial in trials], self.settings)


_MEMBERS = (
  *("action_space", "spec", "suites", "reasons", "baselines", "title", "notes"),
  *("settings", "means", "python", "trials", "make", "goal", "plan_is_right"),
  "fingerprint",
)


def check_benchmark(found: Any, name: str) -> Benchmark:
  """Returns a benchmark that has all members.

  Raises:
    UserError: some are missing.
  """
  missing = [member for member in _MEMBERS if not hasattr(found, member)]
  if missing or isinstance(found, type):
    lacks = f" without {', '.join(missing)}" if missing else ", a class"
    raise UserError(
      f"got benchmark {name!r} of type {type(found).__name__}{lacks}, expected "
      "an instance of a subclass of rt2_jax.rollouts.trial.Benchmark"
    )
  return found


def choose_suites(
  suites: Mapping[str, SuiteInfo], names: Iterable[str]
) -> list[str]:
  """Returns suites by name, by group (with _ for spaces), or "all".

  Raises:
    UserError: an unknown name.
  """
  groups = {info.group.replace(" ", "_"): None for info in suites.values()}
  chosen = set()
  for name in names:
    found = [
      suite
      for suite, info in suites.items()
      if name in ("all", suite, info.group.replace(" ", "_"))
    ]
    if not found:
      raise unknown_name("suite", name, ["all", *groups, *suites])
    chosen.update(found)
  return [suite for suite in suites if suite in chosen]


def fingerprint(
  rows: Sequence[Mapping[str, Any]],
  settings: Mapping[str, Any],
  *pictures: bytes,
) -> str:
  """Hashes trials, settings and what else decides how trials look.

  Args:
    rows: of JSON values, one for each trial.
    settings: JSON values.
    *pictures: bytes of anything that the rows only name.

  Returns:
    Sixteen hex digits.
  """
  text = json.dumps([settings, rows], sort_keys=True)
  digest = hashlib.sha256(text.encode())
  for picture in pictures:
    digest.update(picture)
  return digest.hexdigest()[:16]

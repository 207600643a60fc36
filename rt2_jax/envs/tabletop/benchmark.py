"""The tabletop as a benchmark for rollouts."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from rt2_jax.action_spaces import TABLETOP, TABLETOP_STATE
from rt2_jax.envs.tabletop import (
  baselines,
  environment,
  oracle,
  pictures,
  scene,
  suites,
  trials,
)
from rt2_jax.envs.tabletop.environment import TabletopConfig, TabletopEnv
from rt2_jax.envs.tabletop.suites import MEANS, SUITES
from rt2_jax.observation import PRIMARY, Observation, ObservationSpec
from rt2_jax.rollouts import trial
from rt2_jax.rollouts.trial import Benchmark, Outcome, Trial

_NOTES = (
  "Success is judged from the simulation's state. The random object of guess "
  "stands for the one that a suite is about: the chance level for perfect "
  "motor skill."
)


class Tabletop(Benchmark):
  """Suites of tabletop trials, judged in simulation."""

  title = "the tabletop"
  notes = _NOTES
  action_space = TABLETOP
  spec = ObservationSpec(state=TABLETOP_STATE)
  reasons = (
    environment.SUCCESS,
    environment.WRONG_OBJECT,
    environment.WRONG_PLACE,
    environment.FAILED,
    environment.NOTHING,
  )
  baselines = baselines.BASELINES
  means = MEANS
  suites = {name: suite.info for name, suite in SUITES.items()}  # noqa: RUF012

  def __init__(
    self,
    path: str | os.PathLike = pictures.PATH,
    concepts: Sequence[str] = (),
    families: Sequence[str] = (),
    image_size: int = 96,
    max_steps: int = 60,
  ):
    """Reads the pictures.

    Args:
      path: of the pictures' file.
      concepts: what lies on the table; default: all that the pictures show.
      families: of tasks; default: all of a suite.
      image_size: S, pixels a side of the camera's images.
      max_steps: a trial is cut off after as many.

    Raises:
      UserError: no such file, or an unknown concept.
    """
    self._path, self._families = str(path), tuple(families)
    self._concepts = tuple(concepts)
    self.settings = {"image_size": image_size, "max_steps": max_steps}
    self._pictures()

  def _pictures(self) -> pictures.Pictures:
    return pictures.load(self._path).only(self._concepts)

  def trials(
    self, suites_: Sequence[str], count: int, seed: int
  ) -> list[Trial]:
    chosen = [SUITES[name] for name in suites_]
    rows = suites.only(chosen, self._families)
    return trials.draw(rows, self._pictures(), count, seed)

  def make(self) -> TrialEnvironment:
    # All pictures: the environment looks up those of the trials by name.
    config = TabletopConfig(**self.settings)
    return TrialEnvironment(TabletopEnv(pictures.load(self._path), config))

  def goal(self, trial: Trial) -> str:
    task = trials.task(trial)
    parts = task.target, task.reference or task.side
    return " → ".join(filter(None, parts))

  def plan_is_right(self, trial: Trial, plan: str) -> bool:
    """Tells whether a plan names the target; "apple <loc0123>…" does."""
    name = plan.partition("<loc")[0].strip()
    return name == trials.task(trial).target

  def fingerprint(self, drawn: Sequence[Trial]) -> str:
    rows, shown = [], set()
    for one in drawn:
      options = dict(one.options)
      described = options.pop("described")
      options["instruction"] = one.instruction
      rows.append(
        {
          "suite": one.suite,
          "number": one.number,
          "seed": one.seed,
          "options": options,
          "described": described,
        }
      )
      task = trials.task(one)
      names = (task.target, task.reference, *options["distractors"])
      shown |= {(name, options["style"]) for name in names if name}
    known = self._pictures()
    images = (known.picture(*each).tobytes() for each in sorted(shown))
    return trial.fingerprint(rows, self.settings, *images)


class TrialEnvironment:
  """The tabletop's environment, told by trials what to show."""

  control_hz = scene.CONTROL_HZ

  def __init__(self, env: TabletopEnv):
    self._env = env
    env.open_camera()  # says here what is missing, not at the first trial

  def reset(self, trial: Trial) -> Observation:
    options = trials.reset_options(trial)
    return self._observation(
      self._env.reset(seed=trial.seed, options=options)[0]
    )

  def step(self, action: np.ndarray) -> tuple[Observation, Outcome | None]:
    seen, _, terminated, truncated, info = self._env.step(action)
    outcome = None
    if terminated or truncated:
      reason = info["outcome"]
      details = {"engaged": info["engaged"], "capped": truncated}
      outcome = Outcome(reason == environment.SUCCESS, reason, details)
    return self._observation(seen), outcome

  def expert(self, trial: Trial) -> np.ndarray:
    return oracle.act(self._env.world, trials.task(trial))

  def _observation(self, seen: dict) -> Observation:
    images = {PRIMARY: seen["image"][None]}
    return Observation(images, seen["instruction"], self._env.world.state())

"""Baselines for the tabletop: null, random, guess and oracle."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from rt2_jax.action_spaces import TABLETOP
from rt2_jax.envs.tabletop import tasks, trials
from rt2_jax.observation import PRIMARY, Observation
from rt2_jax.rollouts.trial import Baseline, Trial


def null(observations: Sequence[Observation]) -> np.ndarray:
  """Rests with an open hand and never ends a trial: the floor.

  Returns:
    float32[B, 1, D].
  """
  actions = np.zeros((len(observations), 1, len(TABLETOP)), np.float32)
  actions[..., -1] = 1.0
  return actions


def random(observations: Sequence[Observation]) -> np.ndarray:
  """Moves at random; ends one step in thirty. An image decides the motion.

  Returns:
    float32[B, 1, D].
  """
  low = np.array([d.low for d in TABLETOP.dimensions])
  high = np.array([d.high for d in TABLETOP.dimensions])
  actions = []
  for observation in observations:
    image = observation.images[PRIMARY][-1]
    rng = np.random.default_rng(zlib.crc32(image.tobytes()))
    actions.append(rng.uniform(low, high))
    actions[-1][0] = rng.random() < 1 / 30
  return np.array(actions, np.float32)[:, None]


def guessed(trial: Trial) -> Trial:
  """Takes a random object for the described one.

  As the expert's task this is the chance level for perfect motor skill.
  """
  task, others = trials.task(trial), trial.options["distractors"]
  described = trial.options["described"]
  rng = np.random.default_rng(trial.seed)
  blocks, mats = tasks.lay(task, others)
  known = {task.target, task.reference} - {getattr(task, described)}
  choices = mats if mats and described == "reference" else blocks
  choice = rng.choice([name for name in choices if name not in known])
  other = dataclasses.replace(task, **{described: str(choice)})
  return trials.with_task(trial, other)


BASELINES: Mapping[str, Baseline] = {
  "null": Baseline("rests with an open hand", null),
  "random": Baseline("moves at random", random),
  "guess": Baseline(
    "the expert, who guesses the described thing", expert=guessed
  ),
  "oracle": Baseline("the scripted expert"),
}

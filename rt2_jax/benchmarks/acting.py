"""Measures a config's policy: from an image on the host to an action."""

from __future__ import annotations

from typing import Any

import numpy as np

from rt2_jax.benchmarks import meters, synthetic
from rt2_jax.policy import Policy, held_params
from rt2_jax.robot_policy import RobotPolicy
from rt2_jax.train_config import TrainConfig


def random_policy(config: TrainConfig) -> Policy:
  """Makes a policy with the config's sizes and random parameters."""
  prompt, tokenizers = synthetic.words(config)
  params = synthetic.params(held_params(config.model))
  return Policy(config.model, params, prompt, next(iter(tokenizers.values())))


def action_seconds(
  policy: RobotPolicy, frames: int, robots: int, repeats: int
) -> float:
  """Takes the median time of a call that serves so many robots.

  Args:
    policy: in JAX or PyTorch.
    frames: images of each robot.
    robots: 1 is called as one robot calls.
    repeats: timed calls.
  """
  rng = np.random.default_rng(0)
  shape = (*(frames,) * (frames > 1), *synthetic.CAMERA, 3)
  if robots == 1:
    image = rng.integers(0, 256, shape, np.uint8)
    return meters.seconds(lambda: policy(image, synthetic.INSTRUCTION), repeats)
  images = rng.integers(0, 256, (robots, *shape), np.uint8)
  words = [synthetic.INSTRUCTION] * robots
  return meters.seconds(lambda: policy(images, words), repeats)


def facts(config: TrainConfig, action_s: float) -> dict[str, Any]:
  """Puts what was measured of one robot into one JSON object."""
  return {
    "dtype": config.model.llm.dtype,
    "action_ms": round(1e3 * action_s, 2),
    "actions_per_s": round(1 / action_s, 1),
  }

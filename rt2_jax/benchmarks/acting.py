"""Measures a config's policy: from an image on the host to an action."""

from __future__ import annotations

from typing import Any

import numpy as np

from rt2_jax.benchmarks import meters, synthetic
from rt2_jax.observation import Observation
from rt2_jax.policy import Policy, held_params
from rt2_jax.robot_policy import RobotPolicy
from rt2_jax.train_config import TrainConfig


def random_policy(config: TrainConfig) -> Policy:
  """Makes a policy with the config's sizes and random parameters."""
  prompt, action_tokenizers = synthetic.words(config)
  params = synthetic.params(held_params(config.model))
  actions = next(iter(action_tokenizers.values()))
  return Policy(config.model, params, prompt, actions, config.observation.spec)


def action_seconds(policy: RobotPolicy, robots: int, repeats: int) -> float:
  """Takes the median time of a call that serves so many robots.

  Args:
    policy: in JAX or PyTorch.
    robots: served by one call.
    repeats: timed calls.
  """
  rng = np.random.default_rng(0)
  spec = policy.observation
  shape = (robots, spec.history, *synthetic.CAMERA, 3)
  images = {c: rng.integers(0, 256, shape, np.uint8) for c in spec.cameras}
  state = np.zeros(len(spec.state), np.float32) if spec.state else None
  seen = [
    Observation(
      {camera: frames[b] for camera, frames in images.items()},
      synthetic.INSTRUCTION,
      state,
    )
    for b in range(robots)
  ]
  return meters.seconds(lambda: policy.act(seen), repeats)


def facts(config: TrainConfig, action_s: float) -> dict[str, Any]:
  """Puts what was measured of one robot into one JSON object."""
  return {
    "dtype": config.model.llm.dtype,
    "action_ms": round(1e3 * action_s, 2),
    "actions_per_s": round(1 / action_s, 1),
  }

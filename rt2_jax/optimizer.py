"""The optimizer, from a config: schedule, clipping, AdamW, decay by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from rt2_jax import trees

# Weights of every matrix product; norms, biases and embeddings do not decay.
DECAYED = (
  r"kernel$",
  r"einsum/w$",
  r"mlp/(gating_einsum|linear)$",
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Schedule and AdamW.

  Attributes:
    learning_rate: its peak, after warm-up.
    warmup_steps: steps of linear warm-up from zero.
    end_learning_rate: where the cosine decay ends, at the last step.
    weight_decay: decoupled decay of the `DECAYED` parameters, per unit of
      learning rate.
    clip_norm: largest global norm of a gradient.
    b1: decay of the first moment.
    b2: decay of the second moment.
  """

  learning_rate: float
  warmup_steps: int
  end_learning_rate: float = 0.0
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Linear warm-up, then cosine decay to the last step."""
  if config.warmup_steps >= num_steps:
    raise ValueError(
      f"got config.optimizer.warmup_steps = {config.warmup_steps}, expected "
      f"less than config.num_steps = {num_steps}"
    )
  return optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    config.warmup_steps,
    num_steps,
    config.end_learning_rate,
  )


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Clipping, then AdamW with the schedule of `learning_rate`."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate(config, num_steps),
      b1=config.b1,
      b2=config.b2,
      weight_decay=config.weight_decay,
      mask=decay_mask,
    ),
  )


def decay_mask(params: Any) -> Any:
  """True for the parameters that decay; every rule must match some."""
  names = list(trees.flatten(params))
  decayed = trees.matching(names, DECAYED, "weight decay rule")
  return trees.unflatten({name: name in decayed for name in names})


def count_parameters(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))

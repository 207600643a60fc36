"""The optimizer, from a config: clipping, scaling, decay by name, schedule."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rt2_jax import matrices, trees
from rt2_jax.adafactor import scale_by_adafactor
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.muon import scale_by_muon

# Weights of every matrix product; norms, biases and embeddings do not decay.
DECAYED = (
  r"kernel$",
  r"einsum/w$",
  r"mlp/(gating_einsum|linear)$",
)


_MOMENT_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What happens to a gradient.

  Attributes:
    learning_rate: its peak, after warm-up.
    warmup_steps: steps of linear warm-up from zero; with 0 the first step
      already has the peak.
    name: "adamw"; "adafactor", whose second moments are factored matrix by
      matrix and whose updates are relative to each matrix's RMS (as T5 and
      PaLI-X had it); or "muon", whose updates of matrices are orthogonal and
      as large as AdamW's (arXiv:2502.16982), with AdamW for the rest.
    schedule: what follows the warm-up, "cosine" or "constant".
    end_learning_rate: where "cosine" ends, at the last step.
    weight_decay: decoupled decay of the `DECAYED` parameters, per unit of
      learning rate.
    clip_norm: largest global norm of a gradient, 0 for any.
    b1: decay of the first moment, of AdamW and of Muon.
    b2: decay of AdamW's second moment.
    moment_dtype: of the first moment; "bfloat16" saves two bytes per
      parameter.
    frozen: patterns of parameter names that do not train.
    ema_decay: of the running mean of the parameters that policies act with;
      0 keeps none.
  """

  learning_rate: float
  warmup_steps: int
  name: str = "adamw"
  schedule: str = "cosine"
  end_learning_rate: float = 0.0
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999
  moment_dtype: str = "float32"
  frozen: tuple[str, ...] = ()
  ema_decay: float = 0.0

  def __post_init__(self):
    for field in (
      "learning_rate",
      "warmup_steps",
      "end_learning_rate",
      "weight_decay",
      "clip_norm",
    ):
      self._check(field, 0.0, math.inf, "a finite number, at least 0")
    for field in ("b1", "b2"):
      self._check(field, 0.0, 1.0, "at least 0 and less than 1, such as 0.9")
    self._check(
      "ema_decay",
      0.0,
      1.0,
      "at least 0 (no mean) and less than 1, such as 0.999",
    )
    if self.moment_dtype not in _MOMENT_DTYPES:
      raise unknown_name(
        "config.optimizer.moment_dtype", str(self.moment_dtype), _MOMENT_DTYPES
      )

  def _check(self, field: str, low: float, below: float, expected: str):
    value = getattr(self, field)
    if not low <= value < below:
      raise UserError(
        f"got config.optimizer.{field} = {value}, expected {expected}"
      )


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Builds the schedule: linear warm-up, then `config.schedule`.

  The step after n updates has the rate of n: n / warmup_steps of the peak up to
  n = warmup_steps, and "cosine" would reach its end at n = num_steps.

  Raises:
    UserError: an unknown schedule, or a warm-up that is all of training.
  """
  peak, warmup = config.learning_rate, config.warmup_steps
  if warmup >= num_steps:
    raise UserError(
      f"got config.optimizer.warmup_steps = {warmup}, expected "
      f"less than config.num_steps = {num_steps}"
    )

  def cosine(step):
    done = jnp.clip((step - warmup) / (num_steps - warmup), 0.0, 1.0)
    end = config.end_learning_rate
    return end + (peak - end) * (1.0 + jnp.cos(jnp.pi * done)) / 2.0

  schedules = {"cosine": cosine, "constant": lambda step: peak}
  if config.schedule not in schedules:
    raise unknown_name("config.optimizer.schedule", config.schedule, schedules)
  after = schedules[config.schedule]

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    return jnp.where(step < warmup, peak * step / max(warmup, 1), after(step))

  return rate


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Chains clipping, scaling by moments, decay, and the learning rate.

  Raises:
    UserError: an unknown optimizer or schedule.
  """
  scalings = {"adamw": _adam, "adafactor": _adafactor, "muon": _muon}
  if config.name not in scalings:
    raise unknown_name("config.optimizer.name", config.name, scalings)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm or float("inf")),
    scalings[config.name](config),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(learning_rate(config, num_steps)),
  )


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.scale_by_adam(config.b1, config.b2, mu_dtype=config.moment_dtype)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
  del config  # the published constants, without a first moment
  return scale_by_adafactor()


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.partition(
    {
      "muon": scale_by_muon(config.b1, config.moment_dtype),
      "adamw": _adam(config),
    },
    muon_or_adamw,
  )


def muon_or_adamw(params: Any) -> Any:
  """Labels each parameter with what "muon" updates it by."""
  return trees.unflatten(
    {
      name: "muon" if matrices.within_a_layer(name) else "adamw"
      for name in trees.flatten(params)
    }
  )


def decay_mask(params: Any) -> Any:
  """True for the parameters that decay."""
  return trees.unflatten(
    {
      name: any(re.search(pattern, name) for pattern in DECAYED)
      for name in trees.flatten(params)
    }
  )


def count_parameters(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))

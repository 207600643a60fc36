"""The optimizer, from a config: clipping, scaling, decay by name, schedule."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from rt2_jax import parameters, ranges, trees
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.optimizers.adafactor import scale_by_adafactor
from rt2_jax.optimizers.muon import scale_by_muon
from rt2_jax.ranges import at_least, below

_DTYPES = ("float32", "bfloat16")


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
    weight_decay: decoupled decay of matrices, see `parameters.PARAMETERS`, per
      unit of learning rate.
    clip_norm: largest global norm of a gradient, 0 for any.
    b1: decay of the first moment, of AdamW and of Muon.
    b2: decay of AdamW's second moment.
    moment_dtype: of the first moment; "bfloat16" saves two bytes per
      parameter.
    trained: patterns of the names of parameters that train, all by default;
      ("_lora/",) trains the adapters alone.
    frozen: patterns of the names of parameters that do not.
    param_dtype: of the matrices and tables that train; "bfloat16" halves
      parameters and gradients, and rounds updates stochastically. Norms,
      biases and adapters stay float32.
    frozen_dtype: of the frozen matrices and tables.
    ema_decay: of the running mean of the parameters that policies act with;
      0 keeps none.
  """

  learning_rate: Annotated[float, at_least(0)]
  warmup_steps: Annotated[int, at_least(0)]
  name: str = "adamw"
  schedule: str = "cosine"
  end_learning_rate: Annotated[float, at_least(0)] = 0.0
  weight_decay: Annotated[float, at_least(0)] = 0.0
  clip_norm: Annotated[float, at_least(0)] = 1.0
  b1: Annotated[float, below(1)] = 0.9
  b2: Annotated[float, below(1)] = 0.999
  moment_dtype: str = "float32"
  trained: tuple[str, ...] = (".*",)
  frozen: tuple[str, ...] = ()
  param_dtype: str = "float32"
  frozen_dtype: str = "float32"
  ema_decay: Annotated[float, below(1)] = 0.0

  def __post_init__(self):
    ranges.check(OptimizerConfig, "config.optimizer.", vars(self))
    for field in ("moment_dtype", "param_dtype", "frozen_dtype"):
      dtype = str(getattr(self, field))
      if dtype not in _DTYPES:
        raise unknown_name(f"config.optimizer.{field}", dtype, _DTYPES)


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
      name: "muon" if parameters.row(name).muon else "adamw"
      for name in trees.flatten(params)
    }
  )


def decay_mask(params: Any) -> Any:
  """Selects with True the parameters that decay."""
  return trees.unflatten(
    {name: parameters.row(name).decays for name in trees.flatten(params)}
  )


def count_parameters(params: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))

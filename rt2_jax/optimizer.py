"""The optimizer, from a config: clipping, scaling, decay by name, schedule."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from rt2_jax import trees
from rt2_jax.errors import UserError, unknown_name

# Weights of every matrix product; norms, biases and embeddings do not decay.
DECAYED = (
  r"kernel$",
  r"einsum/w$",
  r"mlp/(gating_einsum|linear)$",
)

# Input and output axes of the matrices within the layers, for Muon.
_MATRICES = {
  r"(q|kv)_einsum/w$": (-2, (-3, -1)),
  r"(query|key|value)/kernel$": (-3, (-2, -1)),
  r"(attn_vec_einsum/w|out/kernel)$": ((-3, -2), -1),
  r"(Dense_\d/kernel|head/kernel|mlp/(gating_einsum|linear))$": (-2, -1),
}
# Of AdamW's updates, about: learning rates carry over.
_ADAM_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """What happens to a gradient.

  Attributes:
    learning_rate: its peak, after warm-up.
    warmup_steps: steps of linear warm-up from zero.
    name: "adamw"; "adafactor", whose second moments are factored and whose
      updates are relative to each parameter's size (as T5 and PaLI-X had it);
      or "muon", whose updates of matrices are orthogonal and as large as
      AdamW's (arXiv:2502.16982), with AdamW for the rest.
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
    if not 0.0 <= self.ema_decay < 1.0:
      raise UserError(
        f"got config.optimizer.ema_decay = {self.ema_decay}, expected at least "
        "0 (no mean) and less than 1, such as 0.999"
      )


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Linear warm-up, then what `config.schedule` says, to the last step.

  Raises:
    UserError: an unknown schedule, or a warm-up that is all of training.
  """
  if config.warmup_steps >= num_steps:
    raise UserError(
      f"got config.optimizer.warmup_steps = {config.warmup_steps}, expected "
      f"less than config.num_steps = {num_steps}"
    )
  peak, warmup = config.learning_rate, config.warmup_steps
  schedules = {
    "cosine": lambda: optax.warmup_cosine_decay_schedule(
      0.0, peak, warmup, num_steps, config.end_learning_rate
    ),
    "constant": lambda: optax.warmup_constant_schedule(0.0, peak, warmup),
  }
  if config.schedule not in schedules:
    raise unknown_name("config.optimizer.schedule", config.schedule, schedules)
  return schedules[config.schedule]()


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformation:
  """Clipping, scaling by moments, decay, and the schedule of `learning_rate`.

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
  """Without momentum: its state is a thousandth of the parameters."""
  del config  # the published constants
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.scale_by_param_block_rms(),
  )


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
  scaled = optax.contrib.muon(
    1.0,
    beta=config.b1,
    mu_dtype=config.moment_dtype,
    consistent_rms=_ADAM_RMS,
    adam_b1=config.b1,
    adam_b2=config.b2,
    muon_weight_dimension_numbers=matrix_axes,
  )
  return optax.chain(scaled, optax.scale(-1.0))  # the schedule comes later


def matrix_axes(params: Any) -> Any:
  """Which axes of each parameter are a matrix's inputs and outputs.

  All other axes, such as the layers in one array, count its matrices. None for
  a parameter that is no matrix within a layer.
  """
  return trees.unflatten(
    {name: _axes_of(name) for name in trees.flatten(params)}
  )


def _axes_of(name: str) -> MuonDimensionNumbers | None:
  for pattern, axes in _MATRICES.items():
    if re.search(pattern, name):
      return MuonDimensionNumbers(*axes)
  return None


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

"""Muon (arXiv:2502.16982): orthogonal updates of the matrices in the layers.

Updates are those of `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, with
the Newton-Schulz iteration in float32.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rt2_jax import parameters
from rt2_jax.parameters import Axes

# Of AdamW's updates, about: learning rates carry over.
_ADAM_RMS = 0.2
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def scale_by_muon(
  momentum: float, momentum_dtype: str
) -> optax.GradientTransformation:
  """Turns gradients of matrices into orthogonal updates of AdamW's size."""
  return optax.chain(
    optax.trace(momentum, nesterov=True, accumulator_dtype=momentum_dtype),
    optax.stateless(lambda updates, _: _orthogonal(updates)),
  )


def _orthogonal(updates: Any) -> Any:
  def turn(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return _orthogonalize(x, parameters.row(name).matrix)

  return jax.tree_util.tree_map_with_path(turn, updates)


def _orthogonalize(x: jax.Array, axes: Axes) -> jax.Array:
  """Brings the singular values of every matrix near `0.2 sqrt(longer side)`."""
  merged = axes.inputs + axes.outputs
  last = tuple(range(-len(merged), 0))
  moved = jnp.moveaxis(x, merged, last)
  inputs = math.prod(x.shape[i] for i in axes.inputs)
  outputs = math.prod(x.shape[i] for i in axes.outputs)
  matrices = moved.reshape(*moved.shape[: last[0]], inputs, outputs)
  turned = _newton_schulz(matrices) * _ADAM_RMS * max(inputs, outputs) ** 0.5
  return jnp.moveaxis(turned.reshape(moved.shape), last, merged)


def _newton_schulz(x: jax.Array) -> jax.Array:
  """[..., m, n] -> the same, with all singular values between 0.7 and 1.2."""
  if x.shape[-2] > x.shape[-1]:  # the smaller of the two Gram matrices
    return _newton_schulz(x.mT).mT
  norm = jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True))
  x = x / jnp.maximum(norm, 1e-7)
  a, b, c = _NEWTON_SCHULZ
  for _ in range(_ITERATIONS):
    gram = x @ x.mT
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x

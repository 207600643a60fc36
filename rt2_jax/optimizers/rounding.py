"""Stochastic rounding, so that parameters may be stored in bfloat16.

An update is often smaller than half of a bfloat16's last bit, 2**-8 of the
parameter: rounded to nearest, it would be lost at every step. Rounded up with
the probability of the part that is cut off, it is right on average
(arXiv:2010.06192).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def add_updates(params: Any, updates: Any, key: jax.Array) -> Any:
  """Adds float32 updates to parameters, each in its own dtype.

  Args:
    params: float32 or bfloat16.
    updates: float32, of the same structure.
    key: of the rounding; another one for every step.
  """
  leaves, treedef = jax.tree.flatten(params)
  moved = (
    _add(param, update, jax.random.fold_in(key, i))
    for i, (param, update) in enumerate(
      zip(leaves, treedef.flatten_up_to(updates), strict=True)
    )
  )
  return treedef.unflatten(moved)


def _add(param: jax.Array, update: jax.Array, key: jax.Array) -> jax.Array:
  total = param.astype(jnp.float32) + update
  return total if param.dtype == jnp.float32 else to_bfloat16(total, key)


def to_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to one of its two neighbours; the mean over keys is `x`."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16)
  upper = (bits + noise) >> 16
  rounded = jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
  # A NaN's bits would overflow into a number.
  return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))

"""The token table's two products, with gradients that are cheap to share.

The table is the largest array of the model, and its gradient the largest that
the chips of a mesh exchange. Left to itself, JAX makes it from float32 and XLA
sums all of it on every chip; written out as below it is in the compute dtype,
and every chip receives its own part only.

Shapes: V vocabulary, D width. `dtype` is the compute dtype.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

# XLA for TPU scatters a sum over chips only when the dimension that stays whole
# is a multiple of this; for a small table the zeros would cost more.
_ALIGNED = 1024
_LARGE = 2**16


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
  """float32[V, D], int32[B, T] -> dtype[B, T, D]; an unknown id gives NaN."""
  return jnp.take(table, ids, axis=0, mode="fill").astype(dtype)


def _lookup_forward(table, ids, dtype):
  return lookup(table, ids, dtype), (table, ids)


def _lookup_backward(dtype, saved, gradient):
  table, ids = saved
  # All chips need all rows, and get them before they become float32: the
  # barrier keeps XLA from turning that round.
  gradient = nn.with_logical_constraint(gradient, (None, None, None))
  gradient = jax.lax.optimization_barrier(gradient).astype(table.dtype)
  return jnp.zeros_like(table).at[ids].add(gradient), None


lookup.defvjp(_lookup_forward, _lookup_backward)


@jax.custom_vjp
def scores(hidden: jax.Array, rows: jax.Array) -> jax.Array:
  """dtype[..., D], dtype[V, D] -> float32[..., V]; its gradients are dtype."""
  return jnp.einsum(
    "...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32
  )


def _scores_forward(hidden, rows):
  return scores(hidden, rows), (hidden, rows)


def _scores_backward(saved, gradient):
  hidden, rows = saved
  vocab = rows.shape[0]
  gradient = gradient.astype(hidden.dtype)
  of_hidden = jnp.einsum("...v,vd->...d", gradient, rows)
  if vocab >= _LARGE:
    beyond = (0, -vocab % _ALIGNED)
    gradient = jnp.pad(gradient, [(0, 0)] * (gradient.ndim - 1) + [beyond])
  of_rows = jnp.einsum("...v,...d->vd", gradient, hidden)
  return of_hidden, of_rows[:vocab]


scores.defvjp(_scores_forward, _scores_backward)

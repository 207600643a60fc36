"""Gemma's attention, as functions without parameters.

Shapes: B examples, T query positions, S key positions, N heads, K key-value
heads, G = N / K, H head size. `dtype` is the compute dtype.
"""

import jax
import jax.numpy as jnp

# Not -inf: a position that may attend to nothing must not turn into NaN.
_MASKED = -2.38e38
_ROPE_BASE = 10_000.0


def rope(x: jax.Array, positions: jax.Array) -> jax.Array:
  """Rotates the first half of each head against the second, by position.

  Args:
    x: dtype[B, T, heads, H].
    positions: int32[B, T].

  Returns:
    dtype[B, T, heads, H], computed in float32.
  """
  half = x.shape[-1] // 2
  frequency = _ROPE_BASE ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[:, :, None, None].astype(jnp.float32) * frequency
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, softcap: float
) -> jax.Array:
  """Computes grouped-query attention: G query heads share a key-value head.

  Args:
    q: dtype[B, T, N, H], scaled.
    k: dtype[B, S, K, H]; query head h reads key-value head h // G.
    v: dtype[B, S, K, H].
    mask: bool[B, T, S], True where the query may attend to the key.
    softcap: logits stay within ± this, 0 for no cap.

  Returns:
    dtype[B, T, N, H]; logits and softmax are float32.
  """
  weights = attention_weights(q, k, mask, softcap).astype(v.dtype)
  return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)


def attention_weights(
  q: jax.Array, k: jax.Array, mask: jax.Array, softcap: float
) -> jax.Array:
  """Computes how much of each value a query reads, float32[B, K, G, T, S].

  Each query's weights sum to 1. Arguments as in `attend`.
  """
  grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
  logits = jnp.einsum(
    "btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32
  )
  logits = cap(logits, softcap)
  logits = jnp.where(mask[:, None, None], logits, _MASKED)
  return jax.nn.softmax(logits, axis=-1)


def cap(logits: jax.Array, bound: float) -> jax.Array:
  """Squashes logits into ± bound; a bound of 0 leaves them as they are."""
  return bound * jnp.tanh(logits / bound) if bound else logits

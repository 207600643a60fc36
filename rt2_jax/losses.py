"""The objective: next-token cross-entropy on the answer (behaviour cloning).

Shapes: B examples, S suffix columns, V vocabulary.
"""

import chex
import jax
import jax.numpy as jnp
import optax


def answer_loss(
  logits: jax.Array, suffix: jax.Array, mask_loss: jax.Array
) -> jax.Array:
  """Mean negative log-likelihood of each example's answer tokens, in nats.

  Every example weighs the same, however long its answer (as big_vision does;
  a mean over all tokens would let long web answers outweigh actions).

  Args:
    logits: float32[B, S, V], column s predicts `suffix[:, s]`.
    suffix: int32[B, S].
    mask_loss: float32[B, S].

  Returns:
    float32[B].
  """
  chex.assert_shape([suffix, mask_loss], logits.shape[:2])
  nll = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), suffix
  )
  count = jnp.maximum(mask_loss.sum(-1), 1.0)
  return (nll * mask_loss).sum(-1) / count

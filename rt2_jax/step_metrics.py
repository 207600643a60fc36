"""What a training step reports of its batch.

Shapes: B examples, S suffix columns, V vocabulary, H actions of a chunk, D
dimensions of an action, M sources of the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import RareTokens
from rt2_jax.actions import NUM_BINS
from rt2_jax.batch import Batch


def per_source(
  loss: jax.Array,
  logits: jax.Array,
  batch: Batch,
  action_tokenizers: Sequence[ActionTokenizer | None],
) -> dict[str, jax.Array]:
  """Sums over the examples of each source; divide them by `examples`.

  Args:
    loss: float32[B].
    logits: float32[B, S, V].
    batch: what they belong to.
    action_tokenizers: of the M sources, None for a web source.

  Returns:
    examples, loss and token_accuracy (of the answer, over the whole
    vocabulary) float32[M]; for robot sources that write one token per
    number, last before eos, `correct/{m}` float32[H, D], right tokens, and
    `l1/{m}` float32[H, D], distance in physical units between the likeliest
    valid bin and the recorded one.
  """
  member = batch.source[:, None] == jnp.arange(len(action_tokenizers))
  member = member.astype(jnp.float32)
  right = jnp.argmax(logits, -1) == batch.suffix
  counted = batch.mask_loss / jnp.maximum(
    batch.mask_loss.sum(-1, keepdims=True), 1.0
  )
  metrics = {
    "examples": member.sum(0),
    "loss": loss @ member,
    "token_accuracy": (right * counted).sum(-1) @ member,
  }
  for m, action_tokenizer in enumerate(action_tokenizers):
    if action_tokenizer is None or not isinstance(
      action_tokenizer.route, RareTokens
    ):
      continue
    candidates = logits[..., jnp.asarray(action_tokenizer.route.ids)]
    shape = action_tokenizer.horizon, len(action_tokenizer.space)
    columns = _action_columns(batch.mask_loss, math.prod(shape))
    right_numbers, scores, suffix = (
      jax.vmap(lambda row, at: row[at])(x, columns)
      for x in (right, candidates, batch.suffix)
    )
    errors = _bin_errors(scores, suffix, action_tokenizer)
    for name, each in (("correct", right_numbers), ("l1", errors)):
      metrics[f"{name}/{m}"] = (member[:, m] @ each).reshape(shape)
  return metrics


def _action_columns(mask_loss: jax.Array, width: int) -> jax.Array:
  """float32[B, S] -> int32[B, H * D], an answer's last columns before eos.

  A plan may precede a chunk, so that rows begin theirs in other columns. A
  shorter answer, which is no action, repeats its first column.
  """
  end = mask_loss.sum(-1).astype(jnp.int32) - 1
  return jnp.maximum(end[:, None] - width + jnp.arange(width), 0)


def _bin_errors(
  scores: jax.Array, suffix: jax.Array, action_tokenizer: ActionTokenizer
) -> jax.Array:
  """|likeliest valid bin - target bin| in physical units, float32[B, H * D].

  Args:
    scores: float32[B, H * D, NUM_BINS], logits of the action tokens.
    suffix: int32[B, H * D], the recorded tokens.
    action_tokenizer: says what they mean.
  """
  ids = jnp.asarray(action_tokenizer.route.ids)
  values = jnp.asarray(action_tokenizer.bin_values())
  valid = np.arange(NUM_BINS) < np.asarray(action_tokenizer.sizes)[:, None]
  predicted = jnp.argmax(jnp.where(valid, scores, -jnp.inf), -1)
  target = jnp.argmax(suffix[..., None] == ids, -1)
  dimension = np.arange(suffix.shape[1]) % len(action_tokenizer.space)
  error = values[dimension, predicted] - values[dimension, target]
  # Rows of other sources may hold ids that no bin has.
  return jnp.nan_to_num(jnp.abs(error))

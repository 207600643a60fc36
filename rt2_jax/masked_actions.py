"""Masked-action augmentation: hides tokens of an action while it is learnt.

A model that always reads an action's first numbers can guess the others from
them and overlook the picture. So training hides some of them, as VLA-0 does
(Goyal et al., 2025): a hidden token is read as padding by the tokens after it,
and its own loss does not count.

Shapes: B examples, S suffix positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.batch import Batch

# Keeps the key apart from the images' augmentation and stochastic rounding.
_MASKING = 0x6D61736B


def hidden_tokens(
  batch: Batch,
  action_tokenizers: Sequence[ActionTokenizer | None],
  fraction: float,
  seed: int,
  step: jax.Array,
) -> jax.Array | None:
  """Draws the tokens that the model does not see, bool[B, S].

  A pure function of (seed, step, row): the same after a restart, on any mesh.

  Args:
    batch: answers of robots and of the web; only actions are hidden, neither
      eos nor the plan before an action of rare tokens.
    action_tokenizers: of each source, None for a web source.
    fraction: of an action's tokens, on average; 0 hides none and returns None.
    seed: of the run.
    step: int32[], steps done.
  """
  if not fraction:
    return None
  key = jax.random.fold_in(jax.random.key(seed), step)
  key = jax.random.fold_in(key, _MASKING)
  lengths = [each.answer_length if each else 0 for each in action_tokenizers]
  length = jnp.asarray(lengths)[batch.source][:, None]
  rows, width = batch.suffix.shape
  eos = batch.mask_loss.sum(-1, keepdims=True).astype(jnp.int32) - 1
  position = jnp.arange(width)
  in_action = (eos - length <= position) & (position < eos)

  def draw(row):
    return jax.random.uniform(jax.random.fold_in(key, row), (width,))

  return in_action & (jax.vmap(draw)(jnp.arange(rows)) < fraction)

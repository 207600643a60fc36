"""Training objectives: which tokens of a batch a model predicts.

Shapes: B examples, S suffix positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rt2_jax.batch import Batch
from rt2_jax.models.vlm import VLM
from rt2_jax.tokenizer import PAD


def answer(
  model: VLM,
  params: Any,
  images: jax.Array,
  mask_image: jax.Array | None,
  batch: Batch,
  hidden: jax.Array | None,
) -> tuple[jax.Array, Batch]:
  """Predicts the answer by the decoder.

  Args:
    model: computes the logits.
    params: its parameters.
    images: float32[B, F, R, R, 3] in [-1, 1].
    mask_image: bool[B, F], False on missing images; None: there are none.
    batch: the text.
    hidden: bool[B, S], tokens that are read as padding; None: there are none.

  Returns:
    logits float32[B, S, V], and the batch.
  """
  read = batch.suffix
  if hidden is not None:
    read = jnp.where(hidden, PAD, read)
  text = (batch.prefix, batch.mask_input, read)
  return model.apply({"params": params}, images, *text, mask_image), batch


def name_patches(
  model: VLM,
  params: Any,
  images: jax.Array,
  mask_image: jax.Array | None,
  batch: Batch,
  hidden: jax.Array | None,
) -> tuple[jax.Array, Batch]:
  """Predicts the answer's words by the image tokens, without the decoder.

  Pretrains a small encoder, in place of SigLIP's contrastive stage.

  Returns:
    logits float32[B, N, V] of N image tokens, and the batch with an answer of
    N positions.
  """
  del mask_image, hidden  # web pictures: none is missing, nothing is hidden
  logits = model.apply({"params": params}, images, method="name_patches")
  tokens = logits.shape[1]
  return logits, batch._replace(
    suffix=batch.suffix[:, :tokens], mask_loss=batch.mask_loss[:, :tokens]
  )


# Each maps parameters and a batch to logits and the batch that they predict.
OBJECTIVES = {"answers": answer, "patches": name_patches}

"""Training objectives: which tokens of a batch a model predicts.

Shapes: B examples, S suffix positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax

from rt2_jax.batch import Batch
from rt2_jax.models.vlm import VLM


def answer(
  model: VLM,
  params: Any,
  images: jax.Array,
  mask_image: jax.Array | None,
  batch: Batch,
) -> tuple[jax.Array, Batch]:
  """Predicts the answer by the decoder: logits float32[B, S, V], the batch."""
  text = (batch.prefix, batch.mask_input, batch.suffix)
  return model.apply({"params": params}, images, *text, mask_image), batch


def name_patches(
  model: VLM,
  params: Any,
  images: jax.Array,
  mask_image: jax.Array | None,
  batch: Batch,
) -> tuple[jax.Array, Batch]:
  """Predicts the answer's words by the image tokens, without the decoder.

  Pretrains a small encoder, in place of SigLIP's contrastive stage.

  Returns:
    logits float32[B, N, V] of N image tokens, and the batch with an answer of
    N positions.
  """
  del mask_image  # web pictures: no image is missing
  logits = model.apply({"params": params}, images, method="name_patches")
  tokens = logits.shape[1]
  return logits, batch._replace(
    suffix=batch.suffix[:, :tokens], mask_loss=batch.mask_loss[:, :tokens]
  )


# Each maps parameters and a batch to logits and the batch that they predict.
OBJECTIVES = {"answers": answer, "patches": name_patches}

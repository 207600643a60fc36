"""Training objectives: which tokens of a batch a model predicts.

Shapes: B examples, S suffix positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from rt2_jax.batch import Batch
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.models.variants import VLMConfig
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


def check(
  objective: str,
  model: VLMConfig,
  robot_sources: Collection[str],
  suffix_length: int,
):
  """Checks that a config's model and sources fit its objective.

  Args:
    objective: its name.
    model: sizes of the parts.
    robot_sources: names of the robot sources.
    suffix_length: positions of an answer, S.

  Raises:
    UserError: no such objective, or it cannot train on these.
  """
  if objective not in OBJECTIVES:
    raise unknown_name("config.objective", objective, OBJECTIVES)
  tokens = model.num_image_tokens
  unfit = robot_sources or model.num_images > 1 or suffix_length <= tokens
  if objective == "patches" and unfit:
    raise UserError(
      f"got config.objective = 'patches' with robot sources "
      f"{sorted(robot_sources)}, {model.num_images} images and "
      f"config.prompt.suffix_length = {suffix_length}, expected web sources "
      f"alone, one image and more than its {tokens} image tokens, whose names "
      "the answers are"
    )

"""Compares what two kinds of device compute for one model.

float32 products on a GPU are rounded to TF32 by default, which keeps 10 bits of
a factor; in the precision "highest" they are float32. Both are compared with
the reference device.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rt2_jax import augment, losses, sharding
from rt2_jax.batch import Batch
from rt2_jax.benchmarks import synthetic
from rt2_jax.held_params import as_read
from rt2_jax.models.vlm import VLM, init_params
from rt2_jax.observation import from_images
from rt2_jax.policy import Policy
from rt2_jax.train_config import TrainConfig


def compare(
  config: TrainConfig, reference: jax.Device, device: jax.Device
) -> dict[str, Any]:
  """Computes logits, gradients and greedy actions on both devices.

  Returns:
    logits: largest difference, relative to the largest logit.
    gradients: norm of the difference, relative to the norm.
    The same two with `_default` in JAX's default precision.
    pixels: fraction of the resized images' grey levels that are equal.
    actions: fraction of the action ids that are equal, in default precision.
  """
  prompt, action_tokenizers = synthetic.words(config)
  rows = synthetic.batch(config, prompt, action_tokenizers)
  params = jax.device_get(init_params(config.model, jax.random.key(0)))
  expected = _loss(config, params, rows, reference, "highest")
  found = {"robots": config.batch_size}
  for precision, suffix in (("highest", ""), ("default", "_default")):
    got = _loss(config, params, rows, device, precision)
    found[f"logits{suffix}"] = _relative(got[0], expected[0], np.inf)
    found[f"gradients{suffix}"] = _relative(got[1], expected[1], 2)
  levels = [np.round((g[2] + 1) * 127.5) for g in (expected, got)]
  found["pixels"] = float(np.mean(levels[0] == levels[1]))
  ids = [
    _ids(config, params, rows, prompt, action_tokenizers, place)
    for place in (reference, device)
  ]
  return found | {"actions": float(np.mean(ids[0] == ids[1]))}


def _loss(
  config: TrainConfig,
  params: dict,
  rows: Batch,
  device: jax.Device,
  precision: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Logits, all gradients in one vector, and the images as they are seen."""

  def loss_of(params, batch):
    images = augment.prepare(
      batch.image, config.model.img.image_size, batch.image_size
    )
    logits = VLM(config.model).apply(
      {"params": params}, images, batch.prefix, batch.mask_input, batch.suffix
    )
    loss = losses.answer_loss(logits, batch.suffix, batch.mask_loss)
    return loss.mean(), (logits, images)

  with jax.default_matmul_precision(precision):
    grads, (logits, images) = jax.jit(jax.grad(loss_of, has_aux=True))(
      *jax.device_put((params, rows), device)
    )
  flat = [np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(grads))]
  return np.asarray(logits), np.concatenate(flat), np.asarray(images)


def _ids(config, params, rows, prompt, action_tokenizers, device) -> np.ndarray:
  """Decodes the action on every image into its tokens."""
  mesh = sharding.make_mesh({}, [device])
  placed = jax.device_put(params, sharding.replicated(mesh))
  actions = next(iter(action_tokenizers.values()))
  spec = config.observation.spec
  held = as_read(placed, mesh)
  policy = Policy(config.model, held, prompt, actions, spec, mesh)
  words = [synthetic.INSTRUCTION] * len(rows.image)
  return policy.token_ids(from_images(rows.image, words, rows.image_size))


def _relative(got: np.ndarray, expected: np.ndarray, order: float) -> float:
  difference = np.linalg.norm(np.ravel(got - expected), order)
  return float(f"{difference / np.linalg.norm(np.ravel(expected), order):.3g}")

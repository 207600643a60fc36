"""Makes inputs of a config without data: words, batches and parameters.

data/small_tokenizer.model replaces a missing tokenizer. That changes words, not
costs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rt2_jax import shipped, storage
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.train_config import TrainConfig

CAMERA = (256, 320)  # RT-1's, height and width
INSTRUCTION = "pick coke can"
_SMALL_TOKENIZER = "data/small_tokenizer.model"


def words(config: TrainConfig) -> tuple[Prompt, dict[str, ActionTokenizer]]:
  """Makes the config's prompt and action tokenizers, or a stand-in's."""
  file = config.tokenizer_file
  found = storage.locate(shipped.find(file), "config.tokenizer_file")
  if not found.is_file():
    file = _SMALL_TOKENIZER
  tokenizer = Tokenizer.from_file(file)
  route = tokenizer.action_route(config.actions.route)
  prompt = Prompt(tokenizer, **dataclasses.asdict(config.prompt))
  return prompt, config.action_tokenizers(route)


def meta(config: TrainConfig) -> dict[str, Any]:
  """Says of an untrained model what a checkpoint would."""
  prompt, action_tokenizers = words(config)
  return CheckpointMeta(
    config={},
    model=config.model,
    prompt=dataclasses.asdict(config.prompt),
    action_tokenizers=action_tokenizers,
    observation=config.observation.spec,
    observations=config.observation_specs(),
    tokenizer_sha256=prompt.tokenizer.sha256,
  ).to_dict()


def batch(
  config: TrainConfig,
  prompt: Prompt,
  action_tokenizers: dict[str, ActionTokenizer],
) -> Batch:
  """Draws random images and actions, fixed by a seed."""
  rng = np.random.default_rng(0)
  rows = config.batch_size
  actions = action_tokenizers[next(iter(config.sources))]
  bins = rng.integers(0, actions.sizes, (rows, len(actions.sizes)))
  chunks = bins.reshape(rows, actions.horizon, len(actions.space))
  suffixes = [prompt.suffix(actions.encode_bins(chunk)) for chunk in chunks]
  suffix, mask_loss = map(np.stack, zip(*suffixes, strict=True))
  prefix, mask_input = prompt.robot_prefixes([INSTRUCTION] * rows)
  count = config.model.num_images
  image = rng.integers(0, 256, (rows, count, *CAMERA, 3), np.uint8)
  source = np.zeros(rows, np.int32)
  size = np.full((rows, count, 2), CAMERA, np.int32)
  return Batch(image, size, prefix, mask_input, suffix, mask_loss, source)


def params(shapes: Any) -> Any:
  """Draws parameters one by one, so that nothing else is in memory.

  Args:
    shapes: ShapeDtypeStructs, such as `held_params.held_params`.
  """
  flat, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(0), len(flat))
  draw = jax.jit(_normal, static_argnums=(1, 2))
  return tree.unflatten(
    [draw(k, x.shape, x.dtype) for k, x in zip(keys, flat, strict=True)]
  )


def _normal(key, shape, dtype):
  """Draws a matrix that keeps its input's scale, or a small vector."""
  scale = shape[-2] ** -0.5 if len(shape) > 1 else 0.1
  return jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)

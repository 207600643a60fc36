"""Memory that a config's training step needs on one device, by a formula.

Nothing is compiled and nothing allocated; the device holds the whole model.

  total = parameters + optimizer + batch + the largest of four stages:

  1. logits:  encoder kept + decoder kept + logits + casts + gradient of the
              token table
  2. decoder: encoder kept + decoder kept + one layer of the decoder + casts +
              gradients of the decoder
  3. encoder: encoder kept + one layer of the encoder + all gradients
  4. update:  all gradients + random bits of the largest array that is rounded
              stochastically

"Kept" is what `remat` keeps of every layer for the backward pass, "one layer"
what one layer computes again, "casts" the token table and one layer in the
compute dtype where they are stored in another one. Nothing goes back through
an encoder of which nothing trains.

Shapes: B rows of a microbatch, T positions of a row, S suffix positions, D
width, F hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rt2_jax import sharding, trees
from rt2_jax.models.variants import GemmaConfig, SiglipConfig
from rt2_jax.tpu import train_step
from rt2_jax.train_config import TrainConfig
from rt2_jax.train_state import TrainState

# Arrays as large as the logits, and as attention's weights, that are alive at
# once: float32, found in XLA's plans for an H100 (jax 0.11).
_LOGITS = 3
_SCORES = 2

_TABLE = "llm/embedder/input_embedding"


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a training step.

  Attributes:
    parameters: in the dtypes that the config stores them in.
    optimizer: moments, and the running mean of the parameters.
    batch: as it comes from the loader.
    stages: what is needed beside these, by stage.
  """

  parameters: float
  optimizer: float
  batch: float
  stages: Mapping[str, float]

  @property
  def total(self) -> float:
    """The peak."""
    held = self.parameters + self.optimizer + self.batch
    return held + max(self.stages.values())

  @property
  def stage(self) -> str:
    """The stage that needs most."""
    return max(self.stages, key=self.stages.get)


def abstract_state(config: TrainConfig) -> TrainState:
  """ShapeDtypeStructs of a config's state; the batch's size changes nothing."""
  action_tokenizers = train_step.stand_in_action_tokenizers(config)
  return config.make_trainer(action_tokenizers, _one_device()).abstract_state()


def of(config: TrainConfig, state: TrainState | None = None) -> Memory:
  """Estimates the step of a config on one device.

  Args:
    config: whose step.
    state: from `abstract_state`, which takes longest.
  """
  state = state or abstract_state(config)
  leaves = trees.flatten(state.params)
  return Memory(
    parameters=_bytes(state.params),
    optimizer=_bytes((state.opt_state, state.ema)),
    batch=_bytes(train_step.abstract_batch(config, _one_device())),
    stages=_stages(config, leaves, train_step.trained_names(config, leaves)),
  )


def _one_device() -> Mesh:
  return sharding.make_mesh({}, jax.local_devices()[:1])


def _bytes(tree: Any) -> float:
  return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def _stages(
  config: TrainConfig,
  leaves: dict[str, jax.ShapeDtypeStruct],
  trained: set[str],
) -> dict[str, float]:
  llm, prompt = config.model.llm, config.prompt
  rows = config.batch_size / config.microbatches
  # The last token of the answer is predicted, not read.
  text = prompt.prefix_length + prompt.suffix_length - 1
  decoder = _decoder(llm, rows, config.model.num_image_tokens + text)
  encoder = _Layers(0.0, 0.0)
  if any(name.startswith("img/") for name in trained):
    encoder = _encoder(config.model.img, rows * config.model.num_images)
  logits = 4.0 * _LOGITS * rows * prompt.suffix_length * llm.vocab_size
  kept, casts = encoder.kept + decoder.kept, _casts(llm, leaves)
  part = {
    prefix: _bytes([leaves[n] for n in trained if n.startswith(prefix)])
    for prefix in (_TABLE, "llm/", "")
  }
  # Sums over the microbatches are float32 and alive all the time.
  sums = 0.0
  if config.microbatches > 1:
    sums = 4.0 * sum(leaves[name].size for name in trained)
  rounded = [
    2.0 * leaves[name].size
    for name in trained
    if leaves[name].dtype == jnp.bfloat16
  ]
  return {
    "logits": sums + kept + logits + casts + part[_TABLE],
    "decoder": sums + kept + decoder.one + casts + part["llm/"],
    "encoder": sums + encoder.kept + encoder.one + part[""],
    "update": max(sums, part[""]) + max(rounded, default=0.0),
  }


@dataclasses.dataclass(frozen=True)
class _Layers:
  """Bytes of a stack of layers: kept by all, and needed by one going back."""

  kept: float
  one: float


def _decoder(config: GemmaConfig, rows: float, length: int) -> _Layers:
  """Numbers per position of what each policy of `models.remat` keeps."""
  d, f, h = config.width, config.mlp_dim, config.head_dim
  ungated = (config.num_heads + 2 * config.num_kv_heads) * h + d
  dots = ungated + 2 * f + d
  one = dots + 2 * f + 4 * d + config.num_heads * h
  # What lies between the products, found in XLA's plans for an H100.
  none = one + 5 * f
  kept = {"full": 0, "ungated": ungated, "dots": dots, "none": none}
  return _layers(config, rows, length, kept[config.remat], one)


def _encoder(config: SiglipConfig, pictures: float) -> _Layers:
  d, f = config.width, config.mlp_dim
  dots = 5 * d + f
  one = dots + f + 4 * d
  none = one + 6 * f + 8 * d  # as in the decoder
  kept = {"full": 0, "ungated": dots, "dots": dots, "none": none}
  return _layers(config, pictures, config.num_tokens, kept[config.remat], one)


def _layers(
  config: GemmaConfig | SiglipConfig,
  rows: float,
  length: int,
  kept: float,
  one: float,
) -> _Layers:
  """Turns numbers per position, kept and of one layer, into bytes."""
  positions = rows * length * jnp.dtype(config.dtype).itemsize
  scores = 4.0 * _SCORES * rows * config.num_heads * length**2
  # Its input, whatever the policy.
  every = positions * (config.width + kept)
  if config.remat == "none":
    every += scores
  return _Layers(config.depth * every, positions * one + scores)


def _casts(
  config: GemmaConfig, leaves: dict[str, jax.ShapeDtypeStruct]
) -> float:
  size = jnp.dtype(config.dtype).itemsize
  layers = [x for n, x in leaves.items() if n.startswith("llm/layers/")]
  if leaves[_TABLE].dtype.itemsize == size:
    return 0.0
  layer = sum(x.size for x in layers) / config.depth
  return size * (leaves[_TABLE].size + layer)

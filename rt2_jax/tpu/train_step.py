"""Predicts memory and time of a config's training step on a TPU slice.

The step is our own, lowered for the slice (`prediction`). Nothing is allocated,
no file is read, no TPU is needed.

Shapes: B examples, T positions of a row (image, prefix and suffix), S of
its suffix, N image tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rt2_jax import parameters, sharding, trees
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import RareTokens
from rt2_jax.actions import NUM_BINS
from rt2_jax.batch import Batch
from rt2_jax.errors import UserError
from rt2_jax.models.vlm import abstract_params
from rt2_jax.tpu import ahead_of_time, prediction
from rt2_jax.tpu.chips import chip_of
from rt2_jax.tpu.prediction import Prediction
from rt2_jax.train_config import TrainConfig

# RT-1's camera, height x width: images come to the devices as recorded.
CAMERA = (256, 320)


@dataclasses.dataclass(frozen=True)
class Estimate(Prediction):
  """A config's training step on one slice; times are compiler-predicted.

  Attributes:
    useful_flops: of a step, all chips together, see `useful_flops`.
    num_steps: length of training.
  """

  useful_flops: float
  num_steps: int

  @property
  def hbm_split(self) -> dict[str, float]:
    """`hbm_bytes` in parts.

    Parameters, optimizer (with the mean of the parameters), activations (what
    forward loops keep for the backward pass) and temporaries (all else at the
    peak, gradients among it).
    """
    known = {
      "parameters": self.facts["parameters"],
      "optimizer": self.facts["optimizer"],
      "activations": self.cost.kept_bytes if self.cost else 0.0,
    }
    return known | {"temporaries": self.hbm_bytes - sum(known.values())}

  @property
  def mfu(self) -> float | None:
    """Model FLOP utilization: useful FLOP / (step time * peak of all chips)."""
    if not self.fits:
      return None
    peak = self.chips * chip_of(self.topology).peak_flops
    return self.useful_flops / (self.cost.step_s * peak)

  @property
  def training_s(self) -> float | None:
    """Seconds of the whole training; input and evaluation hidden behind it."""
    return self.cost.step_s * self.num_steps if self.fits else None

  @property
  def chip_hours(self) -> float | None:
    """Of the whole training."""
    return self.training_s * self.chips / 3600 if self.fits else None

  def to_json(self) -> dict[str, Any]:
    return super().to_json() | {
      "mfu": self.mfu and round(self.mfu, 4),
      "chip_hours": self.chip_hours and round(self.chip_hours, 1),
    }


def estimate(config: TrainConfig, topology: str, mode: str) -> Estimate:
  """Compiles a config's step for a slice.

  Raises:
    UserError: an unknown slice or mode, a mesh that does not multiply to its
      chips, or a batch that does not divide; or no `libtpu`.
    RuntimeError: the compiler failed.
  """
  step = prediction.predict(
    topology, lower_train_step, (config,), config.batch_size, mode
  )
  return Estimate(
    **vars(step),
    useful_flops=useful_flops(config),
    num_steps=config.num_steps,
  )


def lower_train_step(
  devices: list[jax.Device], config: TrainConfig
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """Lowers a config's step on described devices, for `compile_for`."""
  mesh = config.make_mesh(devices)
  sharding.check_batch(config.batch_size, mesh.shape, config.microbatches)
  trainer = config.make_trainer(stand_in_action_tokenizers(config), mesh)
  state = trainer.abstract_state()
  facts = {
    "parameters": bytes_per_chip(state.params),
    "optimizer": bytes_per_chip((state.opt_state, state.ema)),
  }
  batch = abstract_batch(config, mesh)
  facts["argument_bytes"] = bytes_per_chip((state, batch))
  return trainer.lower_step(batch), mesh, facts


def parse_mesh(text: str) -> dict[str, int]:
  """Parses "1x2x128x1", devices along each of `sharding.MESH_AXES`.

  Raises:
    UserError: not one number per axis.
  """
  try:
    sizes = [int(size) for size in text.split("x")]
    return dict(zip(sharding.MESH_AXES, sizes, strict=True))
  except ValueError:
    raise UserError(
      f"got mesh {text!r}, expected {len(sharding.MESH_AXES)} numbers for "
      f"{' x '.join(sharding.MESH_AXES)}, such as 1x2x128x1, or -1 where one "
      "should be chosen"
    ) from None


def meshes(config: TrainConfig, topology: str) -> list[dict[str, int]]:
  """Meshes worth trying: the chosen one, less fsdp, some tensor parallelism.

  Raises:
    UserError: the batch divides on none of them.
  """
  count, slices = ahead_of_time.count_chips(topology)
  params = abstract_params(config.model)
  heads = (config.model.img.num_heads, config.model.llm.num_heads)
  found = []
  for model in (1, 2, 4, 8):
    if count % (slices * model) or any(n % model for n in heads):
      continue
    wanted = {"slice": slices, "data": -1, "fsdp": -1, "model": model}
    best = sharding.mesh_shape(wanted, params, count, slices)
    for part in (1, 2, 4) if model == 1 else (1,):
      if best["fsdp"] % part == 0:
        data, fsdp = best["data"] * part, best["fsdp"] // part
        found.append(best | {"data": data, "fsdp": fsdp})
  rows, parts = config.batch_size, config.microbatches
  dividing = [
    mesh for mesh in found if not rows % (sharding.batch_shards(mesh) * parts)
  ]
  if not dividing:
    sharding.check_batch(rows, found[-1], parts)
  return dividing


def advice(estimate: Estimate, config: TrainConfig) -> str:
  """Advises what to change about one that does not fit."""
  known = estimate.hbm_split["parameters"] + estimate.hbm_split["optimizer"]
  need, limit = estimate.hbm_bytes / 1e9, estimate.hbm_limit_bytes / 1e9
  start = f"needs {need:.1f} GB of {limit:.1f} per chip, {known / 1e9:.1f} of "
  start += "them for parameters and optimizer; "
  if known > 0.8 * estimate.hbm_limit_bytes:
    return start + (
      "take a larger slice, or config.optimizer.name = 'adafactor', which "
      "needs no moments"
    )
  changes = []
  if config.model.llm.remat != "full":
    changes.append("config.model.remat = 'full'")
  if estimate.mesh["data"] > 1:
    changes.append("a larger config.mesh.fsdp")
  rows = estimate.batch_size * estimate.mesh["model"] * config.microbatches
  if rows >= 2 * estimate.chips * config.microbatches**2:
    changes.append(f"config.microbatches = {2 * config.microbatches}")
  changes += ["a smaller --batch_size", "a larger slice"]
  return start + "try " + ", ".join(changes[:-1]) + f" or {changes[-1]}"


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
  """ShapeDtypeStructs of the global batch, see `batch.Batch`."""
  rows = config.batch_size
  prefix, suffix = config.prompt.prefix_length, config.prompt.suffix_length
  placed = sharding.batch_sharding(mesh)

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=placed)

  resolution = config.model.img.image_size
  canvas = (max(resolution, size) for size in CAMERA)
  return Batch(
    image=array(jnp.uint8, config.model.num_images, *canvas, 3),
    image_size=array(jnp.int32, config.model.num_images, 2),
    prefix=array(jnp.int32, prefix),
    mask_input=array(jnp.bool_, prefix),
    suffix=array(jnp.int32, suffix),
    mask_loss=array(jnp.float32, suffix),
    source=array(jnp.int32),
  )


def stand_in_action_tokenizers(
  config: TrainConfig,
) -> dict[str, ActionTokenizer]:
  """Makes action tokenizers without a file: their meaning costs nothing.

  The real ones need the text tokenizer's file. Empty where actions are not
  written in rare tokens.
  """
  if config.actions.route != "rare":
    return {}
  return config.action_tokenizers(RareTokens(tuple(range(NUM_BINS))))


def bytes_per_chip(tree: Any) -> float:
  """Bytes of one chip's part of ShapeDtypeStructs with shardings."""
  return float(
    sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(tree)
    )
  )


def trained_names(config: TrainConfig, names: Iterable[str]) -> set[str]:
  """Finds the parameters that train, as the trainer does."""
  names, fields = list(names), config.optimizer
  trained = trees.matching(names, fields.trained, "config.optimizer.trained")
  frozen = trees.matching(names, fields.frozen, "config.optimizer.frozen")
  return trained - frozen


def useful_flops(config: TrainConfig) -> float:
  """Counts the model's FLOP of a training step, without recomputation.

  Strict: of forward 2 and backward 4 FLOP per weight and column, the encoder
  counts on image tokens, the decoder on all positions, the token table on the S
  positions that predict the answer; attention counts 12 * T^2 * width of the
  heads per layer, masked or not. Biases, norms and the optimizer do not count.
  A frozen weight has 2 less, for it has no gradient, and an encoder of which
  nothing trains has the forward third of all.
  """
  img, llm = config.model.img, config.model.llm
  prompt = config.prompt
  leaves = trees.flatten(abstract_params(config.model))
  trained = trained_names(config, leaves)
  encoder_trains = any(name.startswith("img/") for name in trained)
  flops = {"encoder": 0.0, "decoder": 0.0, "table": 0.0}
  for name, leaf in leaves.items():
    if not parameters.row(name).matrix or name.endswith("pos_embedding"):
      continue
    part = "encoder" if name.startswith("img/") else "decoder"
    goes_back = encoder_trains or part == "decoder"
    factor = 2.0 + 2.0 * goes_back + 2.0 * (name in trained)
    flops["table" if "input_embedding" in name else part] += factor * leaf.size
  n = config.model.num_image_tokens
  # The last token of the answer is predicted, not read.
  positions = n + prompt.prefix_length + prompt.suffix_length - 1
  products = (
    flops["encoder"] * n
    + flops["decoder"] * positions
    + flops["table"] * prompt.suffix_length
  )
  encoder_scores = img.depth * n * img.num_tokens * img.width
  heads = llm.num_heads * llm.head_dim
  decoder_scores = llm.depth * positions**2 * heads
  scores = (12.0 if encoder_trains else 4.0) * encoder_scores
  return config.batch_size * (products + scores + 12.0 * decoder_scores)

"""Rebuilds training steps that others have timed, to test predictions.

PaliGemma as big_vision trains it, and a decoder as MaxText does: see
launch/validation.py, which has their sizes. Both are for a mesh whose axis
"fsdp" splits everything.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rt2_jax import losses, sharding
from rt2_jax.models.attention import rope
from rt2_jax.models.gemma import Einsum, Gemma, RMSNorm
from rt2_jax.models.lora_config import OFF
from rt2_jax.models.remat import rematerialized
from rt2_jax.models.vlm import VLM, abstract_params
from rt2_jax.tpu import train_step
from rt2_jax.train_config import TrainConfig
from rt2_jax.train_state import TrainState

MESH = {"slice": 1, "data": 1, "fsdp": 256, "model": 1}
_CHIPS = math.prod(MESH.values())
_ROWS = P(("slice", "data", "fsdp"))
_TOKENS = ("batch", "length", "embed")  # how activations are laid out

# big_vision splits no parameter that is smaller; here it keeps norms whole too.
_SMALLEST_SPLIT_BYTES = 4 * 2**20

# Rows and columns of a tile that the flash attention kernel works on.
_TILE = 512


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder that trains on text alone.

  Attributes:
    width: D, size of a token.
    depth: number of layers.
    mlp_dim: F, hidden size of the gated MLP.
    num_heads: N, of queries, keys and values alike.
    head_dim: H.
    vocab_size: V, rows of both token tables.
    batch_size: B, rows of the global batch.
    columns: T, tokens of a row.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  head_dim: int
  vocab_size: int
  batch_size: int
  columns: int

  def maxtext_flops(self) -> float:
    """Counts FLOP of a step as MaxText does, over all chips.

    6 per weight and token, without the first token table; attention 12 * T^2 *
    N * H per layer, masked or not; nothing for what is computed again.
    """
    heads = self.num_heads * self.head_dim
    layer = self.width * (4 * heads + 3 * self.mlp_dim)
    weights = self.depth * layer + self.width * self.vocab_size
    scores = self.depth * self.columns**2 * heads
    return self.batch_size * (6.0 * weights * self.columns + 12.0 * scores)


def lower_paligemma(
  devices: list[jax.Device], config: TrainConfig
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """Lowers our trainer's step, its state placed as big_vision places it."""
  mesh = config.make_mesh(devices)
  trainer = config.make_trainer({}, mesh)
  trainer = dataclasses.replace(trainer, module=PlainVLM)
  params = abstract_params(config.model)
  state = TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params=params,
    opt_state=jax.eval_shape(trainer.optimizer.init, params),
  )
  state = placed(state, mesh, longest)
  batch = train_step.abstract_batch(config, mesh)
  return lower(trainer.train_step, state, batch, mesh)


def plain_lookup(table: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
  """As `token_table.lookup`, with JAX's gradient."""
  return jnp.take(table, ids, axis=0, mode="fill").astype(dtype)


def plain_scores(hidden: jax.Array, rows: jax.Array) -> jax.Array:
  """As `token_table.scores`, with JAX's gradients."""
  return jnp.einsum("...d,vd->...v", hidden, rows)


class PlainGemma(Gemma):
  """A decoder whose token table has JAX's own gradients."""

  lookup: ClassVar[Callable] = staticmethod(plain_lookup)
  scores: ClassVar[Callable] = staticmethod(plain_scores)


class PlainVLM(VLM):
  """A VLM whose token table has JAX's own gradients."""

  decoder: ClassVar[type[Gemma]] = PlainGemma


def longest(shape: tuple[int, ...]) -> int | None:
  """Finds the longest dimension that all chips divide."""
  sizes = [0 if size % _CHIPS else size for size in shape]
  return sizes.index(max(sizes)) if any(sizes) else None


def lower_decoder(
  devices: list[jax.Device], config: DecoderConfig
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """Lowers a decoder's training step, weights split along the width."""
  mesh = sharding.make_mesh(MESH, devices)
  model = Decoder(config)
  # Its parameters have no row in our table.
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(3e-5, b2=0.95, weight_decay=0.1),
  )
  tokens = jax.ShapeDtypeStruct(
    (config.batch_size, config.columns + 1),
    jnp.int32,
    sharding=sharding.batch_sharding(mesh),
  )
  params = abstract_decoder(model, mesh)
  state = (params, jax.eval_shape(optimizer.init, params))

  def width(shape):
    return shape.index(config.width) if config.width in shape else None

  step = functools.partial(decoder_step, model, optimizer)
  return lower(step, placed(state, mesh, width), tokens, mesh)


def abstract_decoder(model: Decoder, mesh: Mesh) -> dict:
  """ShapeDtypeStructs of a decoder's parameters."""
  shape = (mesh.size, model.config.columns)
  tokens = jax.ShapeDtypeStruct(shape, jnp.int32)

  def init(tokens):
    return model.init(jax.random.key(0), tokens)["params"]

  with sharding.scope(mesh):
    return jax.eval_shape(init, tokens)


def decoder_step(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  state: tuple[dict, Any],
  tokens: jax.Array,
) -> tuple[tuple[dict, Any], jax.Array]:
  """Updates once on int32[B, T + 1]: every token predicts the next one."""
  params, opt_state = state
  inputs, targets = tokens[:, :-1], tokens[:, 1:]

  def loss_of(params):
    logits = model.apply({"params": params}, inputs)
    counted = jnp.ones(targets.shape, jnp.float32)
    return losses.answer_loss(logits, targets, counted).mean()

  loss, grads = jax.value_and_grad(loss_of)(params)
  updates, opt_state = optimizer.update(grads, opt_state, params)
  return (optax.apply_updates(params, updates), opt_state), loss


class Decoder(nn.Module):
  """Two token tables, and layers that are computed again going back."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Maps int32[B, T] to float32[B, T, V]."""
    c = self.config
    init = nn.initializers.normal(c.width**-0.5)
    table = self.param("table", init, (c.vocab_size, c.width))
    x = plain_lookup(table, tokens, "bfloat16")
    x = nn.with_logical_constraint(x, _TOKENS)
    layers = nn.scan(
      rematerialized(DecoderLayer, "full"),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=c.depth,
    )
    x, _ = layers(c, name="layers")(x)
    shape = (c.width, c.vocab_size)
    unembed = Einsum("btd,dv->btv", shape, c.width, OFF, name="unembed")
    logits = unembed(RMSNorm(name="final_norm")(x))
    return logits.astype(jnp.float32)


class DecoderLayer(nn.Module):
  """Causal attention, then a gated MLP, each added to its input."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    """Returns bfloat16[B, T, D], and the None that `nn.scan` would stack."""
    c = self.config
    d, f, heads = c.width, c.mlp_dim, (c.num_heads, c.head_dim)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    y = RMSNorm(name="attention_norm")(x)
    q, k, v = (
      Einsum("btd,dnh->btnh", (d, *heads), d, OFF, name=name)(y)
      for name in ("query", "key", "value")
    )
    q = rope(q, positions) * c.head_dim**-0.5
    y = flash_attend(q, rope(k, positions), v)
    inner = math.prod(heads)
    y = Einsum("btnh,nhd->btd", (*heads, d), inner, OFF, name="out")(y)
    x = nn.with_logical_constraint(x + y, _TOKENS)
    y = RMSNorm(name="mlp_norm")(x)
    gate, up = (
      Einsum("btd,df->btf", (d, f), d, OFF, name=name)(y)
      for name in ("gate", "up")
    )
    y = Einsum("btf,fd->btd", (f, d), f, OFF, name="down")(nn.silu(gate) * up)
    return nn.with_logical_constraint(x + y, _TOKENS), None


def flash_attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Attends causally, [B, T, N, H] each; every chip has its own rows."""
  columns, heads = q.shape[1:3]
  tile = min(_TILE, columns)
  tiles = splash.BlockSizes(
    **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), tile),
    **dict.fromkeys(("block_q_dkv", "block_kv_dkv"), tile),
    block_kv_dkv_compute=tile,
    use_fused_bwd_kernel=True,
  )
  causal = splash_mask.CausalMask((columns, columns))
  kernel = splash.make_splash_mha(
    splash_mask.MultiHeadMask([causal] * heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=tiles,
  )

  def rows(*arrays):
    # [B, T, N, H] <-> [B, N, T, H]
    arrays = (x.swapaxes(1, 2) for x in arrays)
    return jax.vmap(kernel)(*arrays).swapaxes(1, 2)

  on_each_chip = jax.shard_map(
    rows, in_specs=(_ROWS,) * 3, out_specs=_ROWS, check_vma=False
  )
  return on_each_chip(q, k, v)


def placed(
  tree: Any, mesh: Mesh, chosen: Callable[[tuple[int, ...]], int | None]
) -> Any:
  """ShapeDtypeStructs with shardings.

  Args:
    tree: ShapeDtypeStructs.
    mesh: over whose axis "fsdp" they are split.
    chosen: of a shape, the dimension to split; None for a whole array, as all
      small ones are.
  """

  def place(x):
    large = x.size * x.dtype.itemsize > _SMALLEST_SPLIT_BYTES
    axis = chosen(x.shape) if large else None
    spec = P() if axis is None else P(*[None] * axis, "fsdp")
    where = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  return jax.tree.map(place, tree)


def lower(
  step: Callable, state: Any, batch: Any, mesh: Mesh
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """Lowers a step on described devices, for `ahead_of_time.compile_for`."""
  shardings = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(
    step,
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  facts = {"argument_bytes": train_step.bytes_per_chip((state, batch))}
  with sharding.scope(mesh):
    return jitted.lower(state, batch), mesh, facts

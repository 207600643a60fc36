"""Compares what `launch/estimate.py` predicts with published step times.

  python launch/validation.py                          (both cases, full mode)
  python launch/validation.py --cases=decoder_16b --mode=fast

One JSON object per line: the published and the compiler-predicted step time,
and the error as a part of the published one. In full mode, which the claim is
about, a case takes minutes of CPU time. No TPU is needed (extra `estimate`).

Both cases are training steps on v5e:16x16, as they were timed:

paligemma_3b: PaliGemma's stage 1 (arXiv:2407.07726: 5189 tokens/s per chip, 256
  image and 128 text tokens, batch 8192, Adam), trained with big_vision. It is
  our model and trainer with what big_vision does otherwise: activations in
  float32, one mesh axis over all chips, each parameter split along its longest
  dimension that 256 divides (so that the encoder is whole on every chip),
  logits on all text, and JAX's own gradients of the token table.
decoder_16b: MaxText's 16B decoder (its configs/tpu/v5e/README: 120 TFLOP/s per
  chip, 6 x 2048 tokens per chip, full remat, flash attention), written out
  below: every weight is an array of its own, where our Gemma joins some, which
  takes longer at this size. The attention is JAX's kernel for TPUs.

Neither has the compiler options of our own step.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import resource
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any
from unittest import mock

import absl.logging
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import rt2_paligemma_3b
from rt2_jax import losses, platforms, sharding
from rt2_jax.errors import ends_in_one_message, unknown_name
from rt2_jax.models import gemma
from rt2_jax.models.gemma import Einsum, RMSNorm, rope
from rt2_jax.models.remat import rematerialized
from rt2_jax.models.vlm import abstract_params
from rt2_jax.optimizer import OptimizerConfig, make_optimizer
from rt2_jax.tpu import ahead_of_time, prediction, train_step
from rt2_jax.train_config import TrainConfig, config_hash
from rt2_jax.train_state import TrainState

_CASES = flags.DEFINE_list("cases", None, "Names from above; default: all.")
_MODE = flags.DEFINE_enum(
  "mode", "full", ahead_of_time.MODES, "See estimate.py."
)

_TOPOLOGY = "v5e:16x16"
_MESH = {"slice": 1, "data": 1, "fsdp": 256, "model": 1}
_CHIPS = math.prod(_MESH.values())
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
    """FLOP of a step as MaxText counts them, over all chips.

    6 per weight and token, without the first token table; attention 12 * T^2 *
    N * H per layer, masked or not; nothing for what is computed again.
    """
    heads = self.num_heads * self.head_dim
    layer = self.width * (4 * heads + 3 * self.mlp_dim)
    weights = self.depth * layer + self.width * self.vocab_size
    scores = self.depth * self.columns**2 * heads
    return self.batch_size * (6.0 * weights * self.columns + 12.0 * scores)


@dataclasses.dataclass(frozen=True)
class Case:
  """A published step time, and how the same step is made here.

  Attributes:
    published_step_s: seconds.
    source: where it stands.
    lower: for `ahead_of_time.compile_for`.
    program: what `lower` is called with.
  """

  published_step_s: float
  source: str
  lower: Callable[..., tuple[jax.stages.Lowered, Mesh, dict]]
  program: Any


@ends_in_one_message
def main(argv):
  platforms.prepare()
  if len(argv) > 1:
    raise app.UsageError(f"got {argv[1:]}, expected flags only")
  absl.logging.set_verbosity(absl.logging.WARNING)
  known = cases()
  names = _CASES.value or list(known)
  for name in names:
    if name not in known:
      raise unknown_name("a case", name, known)
  for name in names:
    row = {"case": name} | compare(known[name], _MODE.value)
    print(json.dumps(row), flush=True)


def cases() -> Mapping[str, Case]:
  """By name, see above."""
  paligemma, decoder = paligemma_3b(), decoder_16b()
  tokens = paligemma.batch_size * (256 + 128)
  return MappingProxyType(
    {
      "paligemma_3b": Case(
        published_step_s=tokens / _CHIPS / 5189,
        source="PaliGemma report (arXiv:2407.07726), 5189 tokens/s per chip",
        lower=lower_paligemma,
        program=paligemma,
      ),
      "decoder_16b": Case(
        published_step_s=decoder.maxtext_flops() / _CHIPS / 120e12,
        source="MaxText configs/tpu/v5e/README, 16B: 120 TFLOP/s per chip",
        lower=lower_decoder,
        program=decoder,
      ),
    }
  )


def compare(case: Case, mode: str) -> dict[str, Any]:
  """Compiles a case's step; one row of what this program prints."""
  start = children_cpu_s()
  step = prediction.predict(
    _TOPOLOGY, case.lower, (case.program,), case.program.batch_size, mode
  )
  cpu_s = children_cpu_s() - start
  row = {
    "label": "compiler-predicted",
    "source": case.source,
    "config_hash": config_hash(dataclasses.asdict(case.program)),
    "topology": _TOPOLOGY,
    "mode": mode,
    "published_step_s": round(case.published_step_s, 3),
    "predicted_step_s": None,
    "error": None,
    "hbm_gb_per_chip": round(step.hbm_bytes / 1e9, 2),
    "compile_cpu_s": round(cpu_s),
    "versions": versions(),
  }
  if step.fits:
    step_s = step.cost.step_s
    row["predicted_step_s"] = round(step_s, 3)
    row["error"] = round(step_s / case.published_step_s - 1, 3)
  return row


def children_cpu_s() -> float:
  """CPU seconds of the processes that this one has waited for."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def versions() -> dict[str, str]:
  names = ("jax", "flax", "optax", "libtpu")
  return {name: importlib.metadata.version(name) for name in names}


def paligemma_3b() -> TrainConfig:
  """Our recipe, with what was trained instead."""
  fields = rt2_paligemma_3b.get_config().to_dict()
  fields["model"]["dtype"] = "float32"
  # One token and 128 more, of which the last is predicted and not read.
  fields["prompt"] = {"prefix_length": 1, "suffix_length": 128}
  fields |= {"sources": {}, "robot_share": 0.0, "augmentation": {}}
  fields |= {"mesh": _MESH, "batch_size": 8192}
  return TrainConfig.from_dict(fields)


def lower_paligemma(
  devices: list[jax.Device], config: TrainConfig
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """The trainer's own step, its state placed as big_vision places it."""
  mesh = config.make_mesh(devices)
  trainer = config.make_trainer({}, mesh)
  params = abstract_params(config.model)
  state = TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params=params,
    opt_state=jax.eval_shape(trainer.optimizer.init, params),
  )
  state = placed(state, mesh, longest)
  batch = train_step.abstract_batch(config, mesh)
  plain = {"lookup": plain_lookup, "scores": plain_scores}
  with mock.patch.multiple(gemma, **plain):
    return lower(trainer.train_step, state, batch, mesh)


def longest(shape: tuple[int, ...]) -> int | None:
  """The longest dimension that all chips divide."""
  sizes = [0 if size % _CHIPS else size for size in shape]
  return sizes.index(max(sizes)) if any(sizes) else None


def plain_lookup(table: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
  """As `token_table.lookup`, with JAX's gradient."""
  return jnp.take(table, ids, axis=0, mode="fill").astype(dtype)


def plain_scores(hidden: jax.Array, rows: jax.Array) -> jax.Array:
  """As `token_table.scores`, with JAX's gradients."""
  return jnp.einsum("...d,vd->...v", hidden, rows)


def decoder_16b() -> DecoderConfig:
  return DecoderConfig(
    width=4096,
    depth=32,
    mlp_dim=28672,
    num_heads=64,
    head_dim=128,
    vocab_size=32_000,
    batch_size=6 * _CHIPS,
    columns=2048,
  )


def lower_decoder(
  devices: list[jax.Device], config: DecoderConfig
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """A decoder's training step, its weights split along the width."""
  mesh = sharding.make_mesh(_MESH, devices)
  model = Decoder(config)
  optimizer = make_optimizer(
    OptimizerConfig(3e-5, 1, b2=0.95, weight_decay=0.1), num_steps=100
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
  """One update on int32[B, T + 1]: every token predicts the next one."""
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
    """int32[B, T] -> float32[B, T, V]."""
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
    unembed = Einsum((c.width, c.vocab_size), c.width, name="unembed")
    logits = unembed("btd,dv->btv", RMSNorm(name="final_norm")(x))
    return logits.astype(jnp.float32)


class DecoderLayer(nn.Module):
  """Causal attention, then a gated MLP, each added to its input."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    """bfloat16[B, T, D], and the None that `nn.scan` would stack."""
    c = self.config
    d, f, heads = c.width, c.mlp_dim, (c.num_heads, c.head_dim)
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    y = RMSNorm(name="attention_norm")(x)
    q, k, v = (
      Einsum((d, *heads), d, name=name)("btd,dnh->btnh", y)
      for name in ("query", "key", "value")
    )
    q = rope(q, positions) * c.head_dim**-0.5
    y = flash_attend(q, rope(k, positions), v)
    y = Einsum((*heads, d), math.prod(heads), name="out")("btnh,nhd->btd", y)
    x = nn.with_logical_constraint(x + y, _TOKENS)
    y = RMSNorm(name="mlp_norm")(x)
    gate, up = (
      Einsum((d, f), d, name=name)("btd,df->btf", y) for name in ("gate", "up")
    )
    y = Einsum((f, d), f, name="down")("btf,fd->btd", nn.silu(gate) * up)
    return nn.with_logical_constraint(x + y, _TOKENS), None


def flash_attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Causal attention, [B, T, N, H] each; every chip has its own rows."""
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
  """A step on described devices, for `ahead_of_time.compile_for`."""
  shardings = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(
    step,
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  facts = {"argument_bytes": train_step.bytes_per_chip((state, batch))}
  with sharding.scope(mesh):
    return jitted.lower(state, batch), mesh, facts


if __name__ == "__main__":
  app.run(main)

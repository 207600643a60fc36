"""Maps our parameters to Hugging Face's: names and axes.

One table holds both names of each parameter and how its axes move. Reading and
writing follow the same rows, so that they cannot disagree. SigLIP and Gemma by
themselves have the same names behind other prefixes.

Axes in the table: d encoder or decoder width, e decoder width, f MLP size,
n query heads, k key-value heads, h head size, t image tokens, v vocabulary;
of a patch: y and x pixels, c colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import einops
import numpy as np

from rt2_jax.models.variants import GemmaConfig, VLMConfig

EMBEDDING = "llm/embedder/input_embedding"
POSITIONS = "img/pos_embedding"


class Rule(NamedTuple):
  """One of our parameters, and the tensors that hold it.

  Attributes:
    ours: name in the parameter tree.
    theirs: its name, with "{i}" for the layer where ours are stacked; several
      names where our first axis (behind the layers) stacks several tensors.
    axes: of one tensor, `ours -> theirs`, in the notation of einops.
  """

  ours: str
  theirs: tuple[str, ...]
  axes: str

  def split(self, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields their names and arrays of one of our arrays, layer by layer."""
    for name, part in self._parts(leaf):
      yield name, einops.rearrange(part, self.axes)

  def join(
    self,
    read: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype,
  ) -> np.ndarray:
    """Inverts `split`, holding one of their arrays at a time.

    Args:
      read: their name -> their array.
      shape: of ours.
      dtype: of ours.
    """
    ours, theirs = self.axes.split(" -> ")
    leaf = np.empty(shape, dtype)
    for name, part in self._parts(leaf):
      sizes = dict(zip(ours.split(), part.shape, strict=True))
      sizes.pop("1", None)
      part[...] = einops.rearrange(read(name), f"{theirs} -> {ours}", **sizes)
    return leaf

  def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Returns their names and shapes, for our shape."""
    weightless = np.broadcast_to(np.int8(0), shape)
    return {name: part.shape for name, part in self.split(weightless)}

  def _parts(self, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields views of our array, each under the name of their tensor."""
    layers = leaf if "{i}" in self.theirs[0] else leaf[None]
    for i, layer in enumerate(layers):
      parts = layer if len(self.theirs) > 1 else layer[None]
      for name, part in zip(self.theirs, parts, strict=True):
        yield name.format(i=i), part


def rules(config: VLMConfig) -> tuple[Rule, ...]:
  """Returns the table, one row for each of our parameters."""
  return (*_encoder_rules(), *_decoder_rules(config.llm))


def _dense(ours: str, theirs: str, kernel: str, bias: str) -> Iterator[Rule]:
  yield Rule(f"{ours}/kernel", (f"{theirs}.weight",), kernel)
  yield Rule(f"{ours}/bias", (f"{theirs}.bias",), bias)


def _encoder_rules() -> Iterator[Rule]:
  tower = "vision_tower"
  stem, layer = f"{tower}.embeddings", f"{tower}.encoder.layers.{{i}}"
  block = "img/Transformer/encoderblock"
  heads = f"{block}/MultiHeadDotProductAttention_0"
  patch = f"{stem}.patch_embedding"
  yield from _dense("img/embedding", patch, "y x c d -> d c y x", "d -> d")
  yield Rule(POSITIONS, (f"{stem}.position_embedding.weight",), "1 t d -> t d")
  for name in "query", "key", "value":
    yield from _dense(
      f"{heads}/{name}",
      f"{layer}.self_attn.{name[0]}_proj",
      "d n h -> (n h) d",
      "n h -> (n h)",
    )
  for ours, theirs, kernel in (
    (f"{heads}/out", "self_attn.out_proj", "n h d -> d (n h)"),
    (f"{block}/MlpBlock_0/Dense_0", "mlp.fc1", "d f -> f d"),
    (f"{block}/MlpBlock_0/Dense_1", "mlp.fc2", "f d -> d f"),
  ):
    yield from _dense(ours, f"{layer}.{theirs}", kernel, "d -> d")
  for ours, theirs in (
    (f"{block}/LayerNorm_0", f"{layer}.layer_norm1"),
    (f"{block}/LayerNorm_1", f"{layer}.layer_norm2"),
    ("img/Transformer/encoder_norm", f"{tower}.post_layernorm"),
  ):
    yield Rule(f"{ours}/scale", (f"{theirs}.weight",), "d -> d")
    yield Rule(f"{ours}/bias", (f"{theirs}.bias",), "d -> d")
  projector = "multi_modal_projector.linear"
  yield from _dense("img/head", projector, "d e -> e d", "e -> e")


def _decoder_rules(config: GemmaConfig) -> Iterator[Rule]:
  top = "language_model"
  block, layer = "llm/layers", f"{top}.layers.{{i}}"
  attn, mlp = f"{layer}.self_attn", f"{layer}.mlp"
  q, k, v, o = (f"{attn}.{name}_proj.weight" for name in "qkvo")
  yield Rule(EMBEDDING, (f"{top}.embed_tokens.weight",), "v d -> v d")
  if config.num_heads == config.num_kv_heads:
    yield Rule(f"{block}/attn/qkv_einsum/w", (q, k, v), "n d h -> (n h) d")
  else:
    yield Rule(f"{block}/attn/q_einsum/w", (q,), "n d h -> (n h) d")
    yield Rule(f"{block}/attn/kv_einsum/w", (k, v), "k d h -> (k h) d")
  yield Rule(f"{block}/attn/attn_vec_einsum/w", (o,), "n h d -> d (n h)")
  gate_up = (f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight")
  yield Rule(f"{block}/mlp/gating_einsum", gate_up, "d f -> f d")
  yield Rule(f"{block}/mlp/linear", (f"{mlp}.down_proj.weight",), "f d -> d f")
  norms = {
    f"{block}/pre_attention_norm": f"{layer}.input_layernorm",
    # The same name means the norm after attention in Gemma 2.
    f"{block}/pre_ffw_norm": f"{layer}.post_attention_layernorm",
    "llm/final_norm": f"{top}.norm",
  }
  if config.family == "gemma2":
    norms |= {
      f"{block}/post_attention_norm": f"{layer}.post_attention_layernorm",
      f"{block}/pre_ffw_norm": f"{layer}.pre_feedforward_layernorm",
      f"{block}/post_ffw_norm": f"{layer}.post_feedforward_layernorm",
    }
  for ours, theirs in norms.items():
    yield Rule(f"{ours}/scale", (f"{theirs}.weight",), "d -> d")


def padded_rows(vocab_size: int) -> int:
  """Counts their token table's rows: two more, and a multiple of 64."""
  return -(-(vocab_size + 2) // 64) * 64


def stored_name(name: str) -> str:
  """Returns the name in a file, which transformers 4 and 5 both read."""
  name = name.replace("language_model.", "language_model.model.", 1)
  return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def table_name(stored: str) -> str:
  """Inverts `stored_name`, also for names that transformers 5 writes."""
  name = stored.removeprefix("model.")
  name = name.replace("language_model.model.", "language_model.", 1)
  return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


def part_table_name(part: str, stored: str) -> str | None:
  """Returns the table's name of a tensor of SigLIP ("img") or Gemma ("llm").

  None for tensors that PaliGemma does not have: SigLIP's text tower, its scale
  and its pooling head.
  """
  if part == "llm":
    own = stored.removeprefix("model.")
    return stored if stored == "lm_head.weight" else f"language_model.{own}"
  own = stored.removeprefix("vision_model.")
  if own.startswith(("text_model.", "logit_scale", "logit_bias", "head.")):
    return None
  return f"vision_tower.{own}"

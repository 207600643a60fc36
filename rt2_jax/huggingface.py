"""PaliGemma as Hugging Face transformers has it: names, axes, config.

Also its parts, SigLIP and Gemma, which have the same names behind others. One
table says what each parameter is called on both sides and how its axes
move. Reading and writing follow the same rows, so that they cannot disagree.

Axes in the table: d encoder or decoder width, e decoder width, f MLP size,
n query heads, k key-value heads, h head size, t image tokens, v vocabulary;
of a patch: y and x pixels, c colours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import einops
import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.models.variants import GemmaConfig, SiglipConfig, VLMConfig

EMBEDDING = "llm/embedder/input_embedding"
POSITIONS = "img/pos_embedding"
# Gemma 2 has a sliding window on every other layer, ours has none: a window
# as long as the context is none.
_CONTEXT = 8192
# PaliGemmaConfig and its parts leave out fields that have these values.
_DEFAULTS = {"image_size": 224, "head_dim": 256}
# SiglipVisionConfig leaves out those of its base model.
_SIGLIP_DEFAULTS = {
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "intermediate_size": 3072,
  "num_attention_heads": 12,
  "patch_size": 16,
}
_GEMMA2_DEFAULTS = {
  "query_pre_attn_scalar": 256,
  "attn_logit_softcapping": 50.0,
  "final_logit_softcapping": 30.0,
}


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
    """One of our arrays -> their names and arrays, layer by layer."""
    for name, part in self._parts(leaf):
      yield name, einops.rearrange(part, self.axes)

  def join(
    self,
    read: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    dtype: np.dtype,
  ) -> np.ndarray:
    """The inverse of `split`, holding one of their arrays at a time.

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
    """Their names and shapes, for our shape."""
    weightless = np.broadcast_to(np.int8(0), shape)
    return {name: part.shape for name, part in self.split(weightless)}

  def _parts(self, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Views of our array, each under the name of their tensor."""
    layers = leaf if "{i}" in self.theirs[0] else leaf[None]
    for i, layer in enumerate(layers):
      parts = layer if len(self.theirs) > 1 else layer[None]
      for name, part in zip(self.theirs, parts, strict=True):
        yield name.format(i=i), part


def rules(config: VLMConfig) -> tuple[Rule, ...]:
  """The table, one row for each of our parameters."""
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
  if config.post_norms:
    norms |= {
      f"{block}/post_attention_norm": f"{layer}.post_attention_layernorm",
      f"{block}/pre_ffw_norm": f"{layer}.pre_feedforward_layernorm",
      f"{block}/post_ffw_norm": f"{layer}.post_feedforward_layernorm",
    }
  for ours, theirs in norms.items():
    yield Rule(f"{ours}/scale", (f"{theirs}.weight",), "d -> d")


def padded_rows(vocab_size: int) -> int:
  """Rows of their token table: `<image>`, one more, and a multiple of 64."""
  return -(-(vocab_size + 2) // 64) * 64


def stored_name(name: str) -> str:
  """The name in a file, which transformers 4 and 5 both read."""
  name = name.replace("language_model.", "language_model.model.", 1)
  return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def table_name(stored: str) -> str:
  """The inverse of `stored_name`, also for names that transformers 5 writes."""
  name = stored.removeprefix("model.")
  name = name.replace("language_model.model.", "language_model.", 1)
  return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


def part_table_name(part: str, stored: str) -> str | None:
  """The table's name of a tensor of SigLIP ("img") or Gemma ("llm") alone.

  None for what PaliGemma has no use for: SigLIP's text tower, its scale and
  its pooling head.
  """
  if part == "llm":
    own = stored.removeprefix("model.")
    return stored if stored == "lm_head.weight" else f"language_model.{own}"
  own = stored.removeprefix("vision_model.")
  if own.startswith(("text_model.", "logit_scale", "logit_bias", "head.")):
    return None
  return f"vision_tower.{own}"


def to_config(config: VLMConfig, dtype: str) -> dict[str, Any]:
  """The fields of config.json.

  Raises:
    UserError: transformers has no such decoder.
  """
  img, llm = config.img, config.llm
  text = {
    "model_type": "gemma2" if llm.post_norms else "gemma",
    "hidden_size": llm.width,
    "num_hidden_layers": llm.depth,
    "intermediate_size": llm.mlp_dim,
    "num_attention_heads": llm.num_heads,
    "num_key_value_heads": llm.num_kv_heads,
    "head_dim": llm.head_dim,
    "vocab_size": padded_rows(llm.vocab_size),
    "max_position_embeddings": _CONTEXT,
    "num_image_tokens": img.num_tokens,
    **(_gemma2_fields(llm) if llm.post_norms else _gemma1_fields(llm)),
  }
  vision = {
    "model_type": "siglip_vision_model",
    "hidden_size": img.width,
    "num_hidden_layers": img.depth,
    "intermediate_size": img.mlp_dim,
    "num_attention_heads": img.num_heads,
    "patch_size": img.patch_size,
    "image_size": img.image_size,
    "projection_dim": llm.width,
    "num_image_tokens": img.num_tokens,
    "vision_use_head": False,
  }
  return {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "model_type": "paligemma",
    "hidden_size": llm.width,
    "projection_dim": llm.width,
    "vocab_size": llm.vocab_size,
    "image_token_index": llm.vocab_size,
    "torch_dtype": dtype,
    "text_config": text,
    "vision_config": vision,
  }


def _gemma2_fields(llm: GemmaConfig) -> dict[str, Any]:
  scalar = round(llm.query_factor**-2)
  if not np.isclose(scalar**-0.5, llm.query_factor, rtol=1e-6):
    raise UserError(
      f"got query_scale {llm.query_factor}, expected 1 / sqrt of a whole "
      "number, which is what transformers' query_pre_attn_scalar can say"
    )
  return {
    "query_pre_attn_scalar": scalar,
    "attn_logit_softcapping": llm.attn_softcap or None,
    "final_logit_softcapping": llm.final_softcap or None,
    "sliding_window": _CONTEXT,
    "layer_types": ["full_attention"] * llm.depth,
  }


def _gemma1_fields(llm: GemmaConfig) -> dict[str, Any]:
  scaled = not np.isclose(llm.query_factor, llm.head_dim**-0.5, rtol=1e-6)
  if llm.attn_softcap or llm.final_softcap or scaled:
    raise UserError(
      f"got attn_softcap {llm.attn_softcap}, final_softcap "
      f"{llm.final_softcap} and query_scale {llm.query_scale} without "
      "post_norms, expected 0, 0 and None: transformers' Gemma 1 has none"
    )
  return {}


def from_config(fields: Mapping[str, Any]) -> VLMConfig:
  """The model that a config.json describes; its vocabulary without padding.

  Raises:
    UserError: not PaliGemma, or a field is missing.
  """
  kind = fields.get("model_type")
  if kind != "paligemma":
    raise UserError(
      f"got model_type {kind!r}, expected 'paligemma': only PaliGemma 1 and 2 "
      "have this architecture"
    )
  try:
    img = _encoder_config(_DEFAULTS | fields["vision_config"])
    llm = _decoder_config(_DEFAULTS | fields["text_config"])
    vocab_size = min(fields["image_token_index"], llm.vocab_size)
  except KeyError as missing:
    raise UserError(
      f"got a config without the field {missing}, expected those that "
      "transformers writes for PaliGemma"
    ) from missing
  return VLMConfig(img, dataclasses.replace(llm, vocab_size=vocab_size))


def from_part_config(
  part: str, fields: Mapping[str, Any]
) -> SiglipConfig | GemmaConfig:
  """The encoder ("img") or decoder ("llm") that a config.json describes.

  Raises:
    UserError: not SigLIP or Gemma 1 or 2, or a field is missing.
  """
  kind = fields.get("model_type")
  if kind == "siglip":
    fields = fields["vision_config"]
  known = {"img": ("siglip", "siglip_vision_model"), "llm": ("gemma", "gemma2")}
  if kind not in known[part]:
    raise UserError(
      f"got model_type {kind!r} for {part!r}, expected one of "
      f"{', '.join(known[part])}"
    )
  try:
    if part == "img":
      return _encoder_config(_DEFAULTS | _SIGLIP_DEFAULTS | fields)
    return _decoder_config(_DEFAULTS | fields)
  except KeyError as missing:
    raise UserError(
      f"got a config without the field {missing}, expected those that "
      f"transformers writes for {kind}"
    ) from missing


def _encoder_config(vision: Mapping[str, Any]) -> SiglipConfig:
  return SiglipConfig(
    width=vision["hidden_size"],
    depth=vision["num_hidden_layers"],
    mlp_dim=vision["intermediate_size"],
    num_heads=vision["num_attention_heads"],
    patch_size=vision["patch_size"],
    image_size=vision["image_size"],
  )


def _decoder_config(text: Mapping[str, Any]) -> GemmaConfig:
  config = GemmaConfig(
    width=text["hidden_size"],
    depth=text["num_hidden_layers"],
    mlp_dim=text["intermediate_size"],
    num_heads=text["num_attention_heads"],
    num_kv_heads=text["num_key_value_heads"],
    head_dim=text["head_dim"],
    vocab_size=text["vocab_size"],
  )
  if text["model_type"] != "gemma2":
    return config
  text = _GEMMA2_DEFAULTS | text
  return dataclasses.replace(
    config,
    query_scale=text["query_pre_attn_scalar"] ** -0.5,
    attn_softcap=text["attn_logit_softcapping"] or 0.0,
    final_softcap=text["final_logit_softcapping"] or 0.0,
    post_norms=True,
  )

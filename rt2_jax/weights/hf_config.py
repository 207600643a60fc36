"""Writes and reads config.json of PaliGemma, and reads those of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.models.variants import (
  FAMILIES,
  GemmaConfig,
  SiglipConfig,
  VLMConfig,
)
from rt2_jax.weights import hf_fields
from rt2_jax.weights.hf_fields import DEFAULTS, Fields
from rt2_jax.weights.hf_names import padded_rows

# Gemma 2 has a sliding window on every other layer, ours has none: a window
# as long as the context is none.
_CONTEXT = 8192


def to_config(config: VLMConfig, dtype: str) -> dict[str, Any]:
  """Makes the fields of config.json.

  Raises:
    UserError: transformers has no such decoder.
  """
  img, llm = config.img, config.llm
  text = {
    "model_type": llm.family,
    "hidden_size": llm.width,
    "num_hidden_layers": llm.depth,
    "intermediate_size": llm.mlp_dim,
    "num_attention_heads": llm.num_heads,
    "num_key_value_heads": llm.num_kv_heads,
    "head_dim": llm.head_dim,
    "vocab_size": padded_rows(llm.vocab_size),
    "max_position_embeddings": _CONTEXT,
    "num_image_tokens": img.num_tokens,
    **_FAMILIES[llm.family](llm),
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
  _check_post_norms(llm, True)
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
  _check_post_norms(llm, False)
  scaled = not np.isclose(llm.query_factor, llm.head_dim**-0.5, rtol=1e-6)
  if llm.attn_softcap or llm.final_softcap or scaled:
    raise UserError(
      f"got attn_softcap {llm.attn_softcap}, final_softcap "
      f"{llm.final_softcap} and query_scale {llm.query_scale} of a Gemma 1, "
      "expected 0, 0 and None: transformers' Gemma 1 has none"
    )
  return {}


def _check_post_norms(llm: GemmaConfig, expected: bool):
  if llm.post_norms != expected:
    raise UserError(
      f"got post_norms = {llm.post_norms} in a {FAMILIES[llm.family]}, "
      f"expected {expected}, as transformers has it; correct family"
    )


# What only decoders of one family have.
_FAMILIES = {"gemma": _gemma1_fields, "gemma2": _gemma2_fields}


def from_config(fields: Fields, image_positions: int = 0) -> VLMConfig:
  """Reads the model that a config.json describes, its vocabulary unpadded.

  Args:
    fields: of the file.
    image_positions: positions that the images will take, if not those of one
      image of the file's own size.

  Raises:
    UserError: not PaliGemma, or a field that means another model than ours;
      all such fields are listed.
  """
  kind = fields.get("model_type")
  if kind != "paligemma":
    raise UserError(
      f"got model_type {kind!r}, expected 'paligemma': only PaliGemma 1 and 2 "
      "have this architecture"
    )
  text = _part(fields, "text_config", "gemma", "gemma2")
  vision = _part(fields, "vision_config", "siglip_vision_model")
  problems = [
    *hf_fields.problems("", "paligemma", fields),
    *hf_fields.problems("text_config.", text["model_type"], text),
    *hf_fields.problems("vision_config.", vision["model_type"], vision),
    *hf_fields.bidirectional_problems(text, True),
  ]
  width = hf_fields.value(text["model_type"], text, "hidden_size")
  for name in "hidden_size", "projection_dim":
    value = fields.get(name, DEFAULTS["paligemma"].get(name))
    if value not in (width, None):
      problems.append(f"{name} is {value!r}, expected {width}, the decoder's")
  _refuse(problems)
  img, llm = _encoder_config(vision), _decoder_config(text)
  _refuse(hf_fields.window_problems(text, image_positions or img.num_tokens))
  vocab_size = min(image_token(fields), llm.vocab_size)
  return VLMConfig(img, dataclasses.replace(llm, vocab_size=vocab_size))


def image_token(fields: Fields) -> int:
  """Reads the id of `<image>`, the first one behind the vocabulary."""
  named = fields.get("image_token_id")  # as transformers 5 calls it, too
  if named is not None:
    return named
  return hf_fields.value("paligemma", fields, "image_token_index")


def from_part_config(
  part: str, fields: Fields, image_positions: int
) -> SiglipConfig | GemmaConfig:
  """Reads the encoder ("img") or decoder ("llm") of a config.json.

  Args:
    part: "img" or "llm".
    fields: of the file.
    image_positions: positions that the images will take.

  Raises:
    UserError: not SigLIP or Gemma 1 or 2, or a field that means another model
      than ours; all such fields are listed.
  """
  kind = fields.get("model_type")
  known = {"img": ("siglip", "siglip_vision_model"), "llm": ("gemma", "gemma2")}
  if kind not in known[part]:
    raise UserError(
      f"got model_type {kind!r} for {part!r}, expected one of "
      f"{', '.join(known[part])}"
    )
  if kind == "siglip":
    fields = _part(fields, "vision_config", "siglip_vision_model")
  kind = fields["model_type"]
  problems = hf_fields.problems("", kind, fields)
  if part == "img":
    _refuse(problems)
    return _encoder_config(fields)
  _refuse([*problems, *hf_fields.bidirectional_problems(fields, False)])
  _refuse(hf_fields.window_problems(fields, image_positions))
  return _decoder_config(fields)


def _part(fields: Fields, name: str, *kinds: str) -> Fields:
  """Returns the config of a part, with its model_type checked."""
  part = fields.get(name)
  if not isinstance(part, Mapping):
    raise UserError(f"got {name} {part!r}, expected the fields of a {kinds[0]}")
  part = {"model_type": kinds[0]} | part
  if part["model_type"] not in kinds:
    raise UserError(
      f"got {name}.model_type {part['model_type']!r}, expected one of "
      f"{', '.join(kinds)}"
    )
  return part


def _refuse(problems: list[str]):
  if problems:
    raise UserError(
      f"got a config that means another model than ours: {'; '.join(problems)}"
    )


def _encoder_config(vision: Fields) -> SiglipConfig:
  vision = DEFAULTS["siglip_vision_model"] | vision
  return SiglipConfig(
    width=vision["hidden_size"],
    depth=vision["num_hidden_layers"],
    mlp_dim=vision["intermediate_size"],
    num_heads=vision["num_attention_heads"],
    patch_size=vision["patch_size"],
    image_size=vision["image_size"],
  )


def _decoder_config(text: Fields) -> GemmaConfig:
  text = DEFAULTS[text["model_type"]] | text
  config = GemmaConfig(
    width=text["hidden_size"],
    depth=text["num_hidden_layers"],
    mlp_dim=text["intermediate_size"],
    num_heads=text["num_attention_heads"],
    num_kv_heads=text["num_key_value_heads"],
    head_dim=text["head_dim"],
    vocab_size=text["vocab_size"],
    family=text["model_type"],
  )
  if text["model_type"] != "gemma2":
    return config
  return dataclasses.replace(
    config,
    query_scale=text["query_pre_attn_scalar"] ** -0.5,
    attn_softcap=text["attn_logit_softcapping"] or 0.0,
    final_softcap=text["final_logit_softcapping"] or 0.0,
    post_norms=True,
  )

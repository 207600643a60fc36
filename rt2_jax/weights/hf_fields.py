"""Checks every field of a PaliGemma's config.json against our model.

A field is used, or must be what our model assumes, or is known not to matter;
any other is refused by its name. A field that a file leaves out has the value
that transformers gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fields = Mapping[str, Any]

# Positions that text may take behind the images: prompts are shorter.
_TEXT = 512

# What transformers (5.23) takes where a file leaves a field out. These fields
# become ours.
DEFAULTS = {
  "paligemma": {"image_token_index": 256_000, "projection_dim": 2048},
  "siglip_vision_model": {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "patch_size": 16,
    "image_size": 224,
  },
  "gemma": {
    "hidden_size": 3072,
    "num_hidden_layers": 28,
    "intermediate_size": 24576,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "vocab_size": 256_000,
  },
  "gemma2": {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256_000,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "layer_types": None,
  },
}
# Softcaps may be switched off with null.
_MAY_BE_NULL = (
  *("attn_logit_softcapping", "final_logit_softcapping"),
  *("sliding_window", "layer_types"),
)

# What our model assumes: the values that a field may have. None stands for null
# and for a field that is left out, where transformers takes the same value.
_DECODER = {
  "rms_norm_eps": (1e-6, None),
  "rope_theta": (1e4, None),
  "partial_rotary_factor": (1.0, None),
  "attention_bias": (False, None),
  "tie_word_embeddings": (True, None),
  "is_encoder_decoder": (False, None),
  "add_cross_attention": (False, None),
  "pad_token_id": (0, None),
  "bos_token_id": (2, None),
}
_ASSUMED = {
  "paligemma": {
    "tie_word_embeddings": (True, None),
    "is_encoder_decoder": (False, None),
    "pad_token_id": (0, None),
    "bos_token_id": (2, None),
  },
  "siglip_vision_model": {
    "is_encoder_decoder": (False, None),
    "num_channels": (3, None),
    "layer_norm_eps": (1e-6, None),
    "hidden_act": ("gelu_pytorch_tanh", None),
  },
  "gemma": _DECODER
  | {
    # transformers takes both for the tanh approximation.
    "hidden_act": ("gelu_pytorch_tanh", "gelu", None),
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "sliding_window": (None,),
    "layer_types": (None,),
  },
  "gemma2": _DECODER
  | {
    # Gemma 2 reads the second one only.
    "hidden_act": ("gelu_pytorch_tanh", "gelu", None),
    "hidden_activation": ("gelu_pytorch_tanh", None),
  },
}

_NO_MATTER = frozenset(
  (
    # Names, and what only training or printing reads.
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version"),
    *("architectures", "model_type", "torch_dtype", "dtype", "id2label"),
    *("label2id", "num_labels", "problem_type", "finetuning_task"),
    *("task_specific_params", "tokenizer_class", "initializer_range"),
    *("initializer_factor", "attention_dropout", "use_cache"),
    *("cache_implementation", "return_dict", "output_attentions"),
    *("output_hidden_states", "_attn_implementation"),
    *("_attn_implementation_autoset", "attn_implementation"),
    *("chunk_size_feed_forward", "torchscript", "use_bfloat16"),
    *("tf_legacy_loss", "is_decoder", "cross_attention_hidden_size"),
    *("tie_encoder_decoder", "pruned_heads", "prefix", "ignore_index"),
    # How `generate` draws, which generation_config.json says today.
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams"),
    *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p"),
    *("typical_p", "repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids"),
    *("num_return_sequences", "output_scores", "return_dict_in_generate"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens"),
    *("begin_suppress_tokens", "decoder_start_token_id", "sep_token_id"),
    # Derived by transformers, or read by no layer of PaliGemma.
    *("max_position_embeddings", "num_image_tokens", "projector_hidden_act"),
    *("vision_use_head",),
  )
)
_DERIVED = {
  "paligemma": ("vocab_size", "text_config", "vision_config"),
  "siglip_vision_model": ("projection_dim", "vocab_size"),
  "gemma": (),
  "gemma2": (),
}
# Have rules of their own below.
_ROPE = ("rope_scaling", "rope_parameters")
_RULED = {
  "paligemma": ("hidden_size", "eos_token_id", "image_token_id"),
  "siglip_vision_model": ("eos_token_id", "bos_token_id", "pad_token_id"),
  "gemma": ("eos_token_id", "use_bidirectional_attention", *_ROPE),
  "gemma2": ("eos_token_id", "use_bidirectional_attention", *_ROPE),
}


def value(kind: str, fields: Fields, name: str) -> Any:
  """Looks a field up that becomes ours; transformers' default if absent."""
  return fields.get(name, DEFAULTS[kind][name])


def problems(where: str, kind: str, fields: Fields) -> list[str]:
  """Lists the fields that are not as our model assumes, and what it assumes.

  Args:
    where: the fields' place, such as "text_config.".
    kind: their model_type.
    fields: all of them.
  """
  used, assumed = DEFAULTS[kind], _ASSUMED[kind]
  fine = _NO_MATTER | {*_DERIVED[kind], *_RULED[kind]}
  found = []
  for name, got in (dict.fromkeys(assumed) | used | fields).items():
    expected = ""
    if name in used:
      expected = _expected_number(name, got)
    elif name in assumed and got not in assumed[name]:
      allowed = ("none" if v is None else repr(v) for v in assumed[name])
      expected = " or ".join(allowed)
    elif name in _RULES:
      expected = _RULES[name](got)
    elif name not in assumed and name not in fine and got is not None:
      expected = "no such field: our model knows nothing of it"
    if expected:
      found.append(f"{where}{name} is {got!r}, expected {expected}")
  return found


def _expected_number(name: str, value: Any) -> str:
  """Returns the values that a field we use may have; "" if it has one."""
  if value is None and name in _MAY_BE_NULL:
    return ""
  if name == "layer_types":
    kinds = {"full_attention", "sliding_attention"}
    good = isinstance(value, list) and all(v in kinds for v in value)
    return "" if good else " or ".join(sorted(kinds)) + " for each layer"
  whole = name not in ("query_pre_attn_scalar", *_MAY_BE_NULL)
  types = (int,) if whole else (int, float)
  if isinstance(value, types) and not isinstance(value, bool) and value > 0:
    return ""
  return "a positive whole number" if whole else "a positive number or null"


def _expected_eos(value: Any) -> str:
  ids = value if isinstance(value, list) else [value]
  return "" if value is None or 1 in ids else "1"


def _expected_rope(value: Any) -> str:
  """Returns the RoPE that our model assumes; "" if the fields mean it."""
  plain = {
    "rope_theta": (1e4, None),
    "rope_type": ("default", None),
    "type": ("default", None),
    "partial_rotary_factor": (1.0, None),
  }
  if value is None:
    return ""
  good = isinstance(value, Mapping) and all(
    n in plain and v in plain[n] for n, v in value.items()
  )
  return "" if good else "a rope_theta of 10000.0 and the rope_type 'default'"


_RULES = {
  "eos_token_id": _expected_eos,
  "rope_scaling": _expected_rope,
  "rope_parameters": _expected_rope,
}


def bidirectional_problems(text: Fields, wanted: bool) -> list[str]:
  """Lists a prefix that is not bidirectional (PaliGemma) or causal (Gemma)."""
  name = "use_bidirectional_attention"
  got = text.get(name)
  if got in (wanted, None):
    return []
  return [f"{name} is {got!r}, expected {wanted} or none"]


def window_problems(text: Fields, image_positions: int) -> list[str]:
  """Lists a sliding window that is shorter than the images and text."""
  if text["model_type"] != "gemma2":
    return []
  window = value("gemma2", text, "sliding_window")
  kinds = value("gemma2", text, "layer_types")
  positions = image_positions + _TEXT
  depth = value("gemma2", text, "num_hidden_layers")
  if kinds is not None and len(kinds) != depth:
    return [f"layer_types has {len(kinds)} entries, expected {depth}"]
  slides = kinds is None or "sliding_attention" in kinds
  if window is None or window >= positions or not slides:
    return []
  return [
    f"sliding_window is {window}, expected at least {positions} ("
    f"{image_positions} positions of images and {_TEXT} of text) or null: our "
    "decoder sees all positions"
  ]

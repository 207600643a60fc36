"""Every field of a config.json is used, assumed, or known not to matter."""

import json

import pytest
import transformers

from rt2_jax.errors import UserError
from rt2_jax.weights import hf_config
from tests import tiny_models

VOCAB = 512


def changed(decoder, **changes):
  """A config of ours; `text_config__x=1` changes field x of its text_config."""
  fields = hf_config.to_config(tiny_models.config(decoder, VOCAB), "float32")
  for name, value in changes.items():
    *parts, last = name.split("__")
    place = fields
    for part in parts:
      place = place[part]
    if value is KeyError:
      place.pop(last, None)
    else:
      place[last] = value
  return fields


@pytest.mark.parametrize("decoder", tiny_models.DECODERS)
@pytest.mark.parametrize("use_diff", [True, False])
def test_what_transformers_writes_is_read(decoder, use_diff):
  """All fields that it knows, or those that are not its defaults."""
  ours = tiny_models.config(decoder, VOCAB)
  theirs = transformers.PaliGemmaConfig(**changed(decoder))
  read = hf_config.from_config(
    json.loads(theirs.to_json_string(use_diff=use_diff))
  )
  assert read.img == ours.img
  assert (read.llm.vocab_size, read.llm.mlp_dim) == (VOCAB, ours.llm.mlp_dim)
  assert read.llm.query_factor == pytest.approx(ours.llm.query_factor)
  assert read.llm.final_softcap == ours.llm.final_softcap


def test_fields_that_are_left_out_are_transformers_own():
  theirs = transformers.PaliGemmaConfig(
    text_config=transformers.Gemma2Config(hidden_size=2304).to_dict(),
    vision_config=transformers.SiglipVisionConfig().to_dict(),
    hidden_size=2304,
    projection_dim=2304,
  )
  read = hf_config.from_config(
    {
      "model_type": "paligemma",
      "projection_dim": 2304,
      "text_config": {"model_type": "gemma2"},
      "vision_config": {},
    }
  )
  text, vision = theirs.text_config, theirs.vision_config
  assert read.llm.vocab_size == theirs.image_token_index
  assert read.llm.width == text.hidden_size
  assert read.llm.depth == text.num_hidden_layers
  assert read.llm.mlp_dim == text.intermediate_size
  assert read.llm.num_heads == text.num_attention_heads
  assert read.llm.num_kv_heads == text.num_key_value_heads
  assert read.llm.head_dim == text.head_dim
  assert read.llm.query_factor == text.query_pre_attn_scalar**-0.5
  assert read.llm.attn_softcap == text.attn_logit_softcapping
  assert read.llm.final_softcap == text.final_logit_softcapping
  assert read.img.width == vision.hidden_size
  assert read.img.depth == vision.num_hidden_layers
  assert read.img.mlp_dim == vision.intermediate_size
  assert read.img.num_heads == vision.num_attention_heads
  assert read.img.patch_size == vision.patch_size
  assert read.img.image_size == vision.image_size


@pytest.mark.parametrize(
  ("decoder", "name", "value"),
  [
    ("gemma2", "text_config__rms_norm_eps", 1e-5),
    ("gemma1", "text_config__rope_theta", 1e6),
    ("gemma2", "text_config__rope_parameters", {"rope_theta": 1e6}),
    ("gemma1", "text_config__rope_scaling", {"type": "linear", "factor": 2.0}),
    ("gemma1", "text_config__rope_parameters", {"partial_rotary_factor": 0.5}),
    ("gemma1", "text_config__attention_bias", True),
    ("gemma1", "text_config__hidden_act", "silu"),
    ("gemma2", "text_config__hidden_activation", "gelu"),
    ("gemma1", "text_config__final_logit_softcapping", 30.0),
    ("gemma1", "text_config__query_pre_attn_scalar", 144),
    ("gemma1", "text_config__sliding_window", 8),
    ("gemma2", "text_config__layer_types", ["chunked_attention"] * 3),
    ("gemma2", "text_config__layer_types", ["full_attention"]),
    ("gemma2", "text_config__attn_logit_softcapping", 0),
    ("gemma2", "text_config__query_pre_attn_scalar", None),
    ("gemma1", "text_config__use_bidirectional_attention", False),
    ("gemma1", "text_config__num_hidden_layers", "3"),
    ("gemma1", "text_config__bos_token_id", 5),
    ("gemma1", "text_config__eos_token_id", [7, 8]),
    ("gemma1", "text_config__model_type", "gemma3_text"),
    ("gemma1", "text_config__moe_experts", 4),
    ("gemma1", "vision_config__layer_norm_eps", 1e-5),
    ("gemma1", "vision_config__hidden_act", "gelu"),
    ("gemma1", "vision_config__num_channels", 1),
    ("gemma1", "vision_config__image_size", [32, 64]),
    ("gemma1", "vision_config__model_type", "clip_vision_model"),
    ("gemma1", "projection_dim", KeyError),  # transformers takes 2048
    ("gemma1", "hidden_size", 2048),
    ("gemma1", "tie_word_embeddings", False),
    ("gemma1", "quantization_config", {"bits": 4}),
    ("gemma1", "text_config", None),
  ],
)
def test_what_means_another_model_is_refused_by_name(decoder, name, value):
  fields = changed(decoder, **{name: value})
  field = name.rpartition("__")[2]
  with pytest.raises(UserError, match=rf"{field}.*expected"):
    hf_config.from_config(fields)


def test_all_fields_that_differ_are_listed():
  fields = changed("gemma1", text_config__rms_norm_eps=1e-5, text_config__x=1)
  with pytest.raises(UserError) as error:
    hf_config.from_config(fields)
  assert "text_config.rms_norm_eps is 1e-05, expected 1e-06" in str(error.value)
  assert "text_config.x is 1, expected no such field" in str(error.value)


SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize(
  ("window", "kinds", "image_positions", "fits"),
  [
    (8, SLIDING, 0, False),
    (8, KeyError, 0, False),  # every other layer slides
    (8, ["full_attention"] * 3, 0, True),
    (None, SLIDING, 0, True),
    (KeyError, SLIDING, 0, True),  # transformers takes 4096
    (KeyError, SLIDING, 4096, False),
    (528, SLIDING, 0, True),  # 16 image positions and 512 of text
    (527, SLIDING, 0, False),
    (528, SLIDING, 32, False),  # two images
  ],
)
def test_a_window_must_hold_images_and_text(
  window, kinds, image_positions, fits
):
  fields = changed(
    "gemma2", text_config__sliding_window=window, text_config__layer_types=kinds
  )
  if fits:
    hf_config.from_config(fields, image_positions)
    return
  with pytest.raises(
    UserError, match=r"sliding_window is \d+, expected at lea"
  ):
    hf_config.from_config(fields, image_positions)

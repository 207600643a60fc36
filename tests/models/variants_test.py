"""Real sizes: names, shapes and totals, without allocating any of them."""

import functools
import math

import jax
import pytest

from rt2_jax import trees
from rt2_jax.models import variants
from rt2_jax.models.variants import GemmaConfig, SiglipConfig
from rt2_jax.models.vlm import init_params


@functools.cache
def shapes_of(config) -> dict[str, tuple[int, ...]]:
  init = functools.partial(init_params, config)
  tree = jax.eval_shape(init, jax.random.key(0))
  return {name: leaf.shape for name, leaf in trees.flatten(tree).items()}


def total(shapes, prefix="") -> int:
  return sum(
    math.prod(shape)
    for name, shape in shapes.items()
    if name.startswith(prefix)
  )


def so400m(tokens: int, out: int) -> dict[str, tuple[int, ...]]:
  """SigLIP So400m/14 as the public checkpoints have it."""
  block = "img/Transformer/encoderblock"
  attention = f"{block}/MultiHeadDotProductAttention_0"
  return {
    "img/embedding/kernel": (14, 14, 3, 1152),
    "img/embedding/bias": (1152,),
    "img/pos_embedding": (1, tokens, 1152),
    f"{block}/LayerNorm_0/scale": (27, 1152),
    f"{block}/LayerNorm_0/bias": (27, 1152),
    f"{block}/LayerNorm_1/scale": (27, 1152),
    f"{block}/LayerNorm_1/bias": (27, 1152),
    f"{attention}/query/kernel": (27, 1152, 16, 72),
    f"{attention}/query/bias": (27, 16, 72),
    f"{attention}/key/kernel": (27, 1152, 16, 72),
    f"{attention}/key/bias": (27, 16, 72),
    f"{attention}/value/kernel": (27, 1152, 16, 72),
    f"{attention}/value/bias": (27, 16, 72),
    f"{attention}/out/kernel": (27, 16, 72, 1152),
    f"{attention}/out/bias": (27, 1152),
    f"{block}/MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
    f"{block}/MlpBlock_0/Dense_0/bias": (27, 4304),
    f"{block}/MlpBlock_0/Dense_1/kernel": (27, 4304, 1152),
    f"{block}/MlpBlock_0/Dense_1/bias": (27, 1152),
    "img/Transformer/encoder_norm/scale": (1152,),
    "img/Transformer/encoder_norm/bias": (1152,),
    "img/head/kernel": (1152, out),
    "img/head/bias": (out,),
  }


# PaliGemma 3B.
GEMMA_2B = {
  "llm/embedder/input_embedding": (257152, 2048),
  "llm/layers/attn/q_einsum/w": (18, 8, 2048, 256),
  "llm/layers/attn/kv_einsum/w": (18, 2, 1, 2048, 256),
  "llm/layers/attn/attn_vec_einsum/w": (18, 8, 256, 2048),
  "llm/layers/mlp/gating_einsum": (18, 2, 2048, 16384),
  "llm/layers/mlp/linear": (18, 16384, 2048),
  "llm/layers/pre_attention_norm/scale": (18, 2048),
  "llm/layers/pre_ffw_norm/scale": (18, 2048),
  "llm/final_norm/scale": (2048,),
}
# PaliGemma 2 3B.
GEMMA2_2B = {
  "llm/embedder/input_embedding": (257152, 2304),
  "llm/layers/attn/q_einsum/w": (26, 8, 2304, 256),
  "llm/layers/attn/kv_einsum/w": (26, 2, 4, 2304, 256),
  "llm/layers/attn/attn_vec_einsum/w": (26, 8, 256, 2304),
  "llm/layers/mlp/gating_einsum": (26, 2, 2304, 9216),
  "llm/layers/mlp/linear": (26, 9216, 2304),
  "llm/layers/pre_attention_norm/scale": (26, 2304),
  "llm/layers/pre_ffw_norm/scale": (26, 2304),
  "llm/layers/post_attention_norm/scale": (26, 2304),
  "llm/layers/post_ffw_norm/scale": (26, 2304),
  "llm/final_norm/scale": (2304,),
}
# PaliGemma 2 10B.
GEMMA2_9B = {
  "llm/embedder/input_embedding": (257152, 3584),
  "llm/layers/attn/q_einsum/w": (42, 16, 3584, 256),
  "llm/layers/attn/kv_einsum/w": (42, 2, 8, 3584, 256),
  "llm/layers/attn/attn_vec_einsum/w": (42, 16, 256, 3584),
  "llm/layers/mlp/gating_einsum": (42, 2, 3584, 14336),
  "llm/layers/mlp/linear": (42, 14336, 3584),
  "llm/layers/pre_attention_norm/scale": (42, 3584),
  "llm/layers/pre_ffw_norm/scale": (42, 3584),
  "llm/layers/post_attention_norm/scale": (42, 3584),
  "llm/layers/post_ffw_norm/scale": (42, 3584),
  "llm/final_norm/scale": (3584,),
}
# PaliGemma 2 28B.
GEMMA2_27B = {
  "llm/embedder/input_embedding": (257152, 4608),
  "llm/layers/attn/q_einsum/w": (46, 32, 4608, 128),
  "llm/layers/attn/kv_einsum/w": (46, 2, 16, 4608, 128),
  "llm/layers/attn/attn_vec_einsum/w": (46, 32, 128, 4608),
  "llm/layers/mlp/gating_einsum": (46, 2, 4608, 36864),
  "llm/layers/mlp/linear": (46, 36864, 4608),
  "llm/layers/pre_attention_norm/scale": (46, 4608),
  "llm/layers/pre_ffw_norm/scale": (46, 4608),
  "llm/layers/post_attention_norm/scale": (46, 4608),
  "llm/layers/post_ffw_norm/scale": (46, 4608),
  "llm/final_norm/scale": (4608,),
}


@pytest.mark.parametrize(
  ("llm", "decoder", "parameters"),
  [
    ("gemma_2b", GEMMA_2B, 2_923_335_408),
    ("gemma2_2b", GEMMA2_2B, 3_032_094_960),
    ("gemma2_9b", GEMMA2_9B, 9_662_409_456),
    ("gemma2_27b", GEMMA2_27B, 27_650_192_112),
  ],
)
def test_public_checkpoints_fit_name_by_name(llm, decoder, parameters):
  shapes = shapes_of(variants.vlm("So400m/14", llm))
  width = decoder["llm/final_norm/scale"][0]
  assert shapes == so400m(tokens=256, out=width) | decoder
  assert total(shapes) == parameters


def test_larger_images_have_more_positions_and_nothing_else():
  shapes = shapes_of(variants.vlm(image_size=448))
  assert shapes == so400m(tokens=1024, out=2048) | GEMMA_2B


def test_equal_heads_are_fused_in_one_array():
  shapes = shapes_of(variants.vlm(llm="gemma_7b"))
  assert shapes["llm/layers/attn/qkv_einsum/w"] == (28, 3, 16, 3072, 256)
  assert not {name for name in shapes if "/kv_einsum/" in name}
  # Gemma 7B, as published, and the rows that PaliGemma adds to its table.
  extra_rows = 257152 - 256000
  assert total(shapes, "llm/") == 8_537_680_896 + extra_rows * 3072


@pytest.mark.parametrize(
  ("img", "parameters"),
  [
    ("So400m/14", 0.41e9),
    ("G/14", 1.84e9),
    ("e/14", 3.9e9),
    ("22B/14", 22e9),
  ],
)
def test_encoders_have_the_published_size(img, parameters):
  shapes = shapes_of(variants.vlm(img, "gemma_2b"))
  assert total(shapes, "img/") == pytest.approx(parameters, rel=0.03)


def test_the_largest_model_is_pali_x_sized():
  shapes = shapes_of(variants.vlm("22B/14", "ul2_32b"))
  assert total(shapes) == pytest.approx(55e9, rel=0.02)
  assert total(shapes, "llm/layers/") == pytest.approx(32e9, rel=0.02)


def test_tiny_models_have_a_few_million_parameters():
  for img in ("tiny/8", "tiny/16"):
    for llm in ("gemma_tiny", "gemma2_tiny"):
      config = variants.vlm(img, llm, image_size=64, vocab_size=1024)
      shapes = shapes_of(config)
      assert 1e6 < total(shapes, "img/") < 4e6
      assert 2e6 < total(shapes, "llm/") < 5e6


def test_vlm_passes_every_choice_on():
  config = variants.vlm(
    "tiny/8",
    "gemma2_tiny",
    image_size=64,
    vocab_size=512,
    dtype="bfloat16",
    remat="full",
    final_softcap=0.0,
  )
  assert config.img.num_tokens == 64
  assert config.num_image_tokens == 64
  assert config.llm.vocab_size == 512
  assert config.llm.final_softcap == 0.0
  assert config.llm.attn_softcap == 50.0
  assert config.img.dtype == config.llm.dtype == "bfloat16"
  assert config.img.remat == config.llm.remat == "full"
  assert variants.vlm(llm="gemma2_2b").llm.final_softcap == 30.0
  assert variants.vlm(llm="gemma_2b").llm.final_softcap == 0.0


def test_query_factor():
  def factor(name):
    return variants.DECODERS[name].query_factor

  assert factor("gemma_2b") == factor("gemma2_9b") == 256**-0.5
  assert factor("gemma2_27b") == (4608 // 32) ** -0.5


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (("So400m/41", "gemma_2b"), r"encoder.*22B/14.*mean 'So400m/14'"),
    (("So400m/14", "gema_2b"), r"decoder.*ul2_32b.*mean 'gemma_2b'"),
    (("So400m/14", "llama"), r"got 'llama' for decoder, expected one of"),
  ],
)
def test_unknown_names_are_answered_with_the_known_ones(names, message):
  with pytest.raises(ValueError, match=message):
    variants.vlm(*names)


def test_an_image_that_is_no_whole_number_of_patches_is_refused():
  with pytest.raises(ValueError, match=r"got image_size 256.* 252 or 266"):
    variants.vlm(image_size=256)
  with pytest.raises(ValueError, match=r"got image_size 8.* 14 or 14"):
    variants.vlm(image_size=8)


def test_heads_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="num_heads 5.*width 16"):
    SiglipConfig(16, 1, 32, 5)
  with pytest.raises(ValueError, match="num_kv_heads 3.*num_heads 4"):
    GemmaConfig(16, 1, 32, 4, 3, 4)

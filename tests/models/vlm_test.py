"""The whole model: acting equals training, whatever the padding."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.models.variants import GemmaConfig, SiglipConfig, VLMConfig
from rt2_jax.models.vlm import VLM, attention_mask, init_params

IMG = SiglipConfig(16, 2, 32, 4, patch_size=4, image_size=8)
MQA = GemmaConfig(24, 2, 48, 4, 1, 8, vocab_size=40)
MHA = dataclasses.replace(MQA, num_kv_heads=4)
GEMMA2 = dataclasses.replace(
  MQA, num_kv_heads=2, attn_softcap=5.0, final_softcap=2.0, post_norms=True
)
CONFIGS = {
  "mqa": VLMConfig(IMG, MQA),
  "mha_two_frames": VLMConfig(IMG, MHA, num_images=2),
  "gemma2": VLMConfig(IMG, GEMMA2),
}
ATOL = 1e-4
SUFFIX = 5


class Inputs(NamedTuple):
  """Two examples, the first with two columns of padding."""

  images: jax.Array
  prefix: jax.Array
  mask_input: jax.Array
  suffix: jax.Array

  @property
  def prompt(self):
    return self[:3]


@functools.cache
def params_of(config):
  """Parameters from numpy, which needs no compiler; no bias is zero."""
  init = functools.partial(init_params, config)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(leaf.dtype),
    jax.eval_shape(init, jax.random.key(0)),
  )


@functools.cache
def compiled(config, method, **static):
  return jax.jit(functools.partial(VLM(config).apply, method=method, **static))


def apply(config, *args, method="__call__", **static):
  run = compiled(config, method, **static)
  return run({"params": params_of(config)}, *args)


def make_inputs(config):
  rng = np.random.default_rng(1)
  tokens = rng.integers(3, 40, (2, 6 + SUFFIX), dtype=np.int32)
  mask_input = np.ones((2, 6), bool)
  mask_input[0, :2] = False
  return Inputs(
    rng.uniform(-1, 1, (2, config.num_images, 8, 8, 3)).astype(np.float32),
    np.where(mask_input, tokens[:, :6], 0),
    mask_input,
    tokens[:, 6:],
  )


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def config(request):
  return request.param


@pytest.fixture(scope="module")
def inputs(config):
  return make_inputs(config)


@pytest.fixture(scope="module")
def logits(config, inputs):
  return apply(config, *inputs)


@pytest.mark.parametrize(
  ("mask_ar", "rows"),
  [
    ([0, 0, 0, 0], ["xxxx", "xxxx", "xxxx", "xxxx"]),
    ([1, 1, 1, 1], ["x...", "xx..", "xxx.", "xxxx"]),
    ([0, 0, 1, 1], ["xx..", "xx..", "xxx.", "xxxx"]),
    ([0, 1, 0, 1], ["x...", "xxx.", "xxx.", "xxxx"]),
  ],
)
def test_attention_mask(mask_ar, rows):
  expected = np.array([[c == "x" for c in row] for row in rows])
  real = np.array([[True] * 4, [False, True, True, True]])
  mask = attention_mask(real, np.array([mask_ar] * 2))
  np.testing.assert_array_equal(mask[0], expected)
  np.testing.assert_array_equal(mask[1], expected & real[1])


@pytest.mark.parametrize("blocks", [[1] * 4, [2, 2]])
def test_prefill_and_extend_equal_the_call(config, inputs, logits, blocks):
  assert logits.shape == (2, SUFFIX, 40) and logits.dtype == jnp.float32
  hidden, state = apply(
    config, *inputs.prompt, method="prefill", answer_len=SUFFIX
  )
  first = apply(config, hidden, method="logits")
  np.testing.assert_allclose(first, logits[:, :1], atol=ATOL)
  start = 0
  for size in blocks:
    tokens = inputs.suffix[:, start : start + size]
    hidden, state = apply(config, tokens, state, method="extend")
    actual = apply(config, hidden, method="logits")
    start += size
    expected = logits[:, start - size + 1 : start + 1]
    np.testing.assert_allclose(actual, expected, atol=ATOL)
  real = config.num_image_tokens + inputs.mask_input.sum(axis=1)
  assert state.position.tolist() == (real + 4).tolist()
  assert state.mask_input.sum(axis=1).tolist() == (real + 4).tolist()


def test_a_draft_is_read_with_the_prompt_and_not_kept():
  config = CONFIGS["gemma2"]
  inputs = make_inputs(config)
  logits = apply(config, *inputs)
  right = inputs.suffix[:, :-1]

  def prefill(draft):
    return apply(
      config,
      *(*inputs.prompt, None, draft),
      method="prefill",
      answer_len=SUFFIX,
    )

  def assert_right(hidden):
    found = apply(config, hidden, method="logits")
    np.testing.assert_allclose(found, logits, atol=ATOL)

  assert_right(prefill(right)[0])
  hidden, state = prefill((right + 1) % 40)
  following, _ = apply(config, right, state, method="extend")
  assert_right(jnp.concatenate([hidden[:, :1], following], 1))


def test_logits_of_in_a_scan_over_the_state(config, inputs, logits):
  """As masked decoding runs: one loop, and the rows of a few tokens."""
  ids = jnp.array([5, 39, 7])
  params = {"params": params_of(config)}
  model = VLM(config)

  @jax.jit
  def decode(suffix):
    def step(carry, token):
      hidden, state = carry
      some = model.apply(params, hidden[:, 0], ids, method="logits_of")
      return model.apply(params, token[:, None], state, method="extend"), some

    start = model.apply(
      params, *inputs.prompt, answer_len=SUFFIX, method="prefill"
    )
    return jax.lax.scan(step, start, suffix.T)[1].swapaxes(0, 1)

  actual = decode(jnp.asarray(inputs.suffix))
  np.testing.assert_allclose(actual, logits[..., ids], atol=ATOL)


def test_more_padding_changes_nothing(config, inputs, logits):
  def pad(array):
    return np.pad(array, ((0, 0), (3, 0)))

  wider = inputs._replace(
    prefix=pad(inputs.prefix), mask_input=pad(inputs.mask_input)
  )
  np.testing.assert_allclose(apply(config, *wider), logits, atol=ATOL)


def test_what_stands_in_the_padding_does_not_matter(config, inputs, logits):
  other = inputs._replace(prefix=np.where(inputs.mask_input, inputs.prefix, 9))
  assert (other.prefix != inputs.prefix).any()
  np.testing.assert_array_equal(apply(config, *other), logits)


def test_an_answer_token_is_seen_by_later_ones_only(config, inputs, logits):
  """So what pads a short answer on the right cannot reach it either."""
  for column in (2, SUFFIX - 1):
    suffix = inputs.suffix.copy()
    suffix[:, column] += 1
    suffix %= 40
    changed = apply(config, *inputs._replace(suffix=suffix)) != logits
    assert not changed[:, : column + 1].any()
    assert changed[:, column + 1 :].any(axis=(0, 2)).all()


def test_image_tokens_are_named_by_the_token_table(config, inputs):
  named = apply(config, inputs.images, method="name_patches")
  tokens = apply(config, inputs.images, method="embed_images")
  assert named.shape == (2, config.num_image_tokens, config.llm.vocab_size)
  expected = apply(config, tokens, method="logits")
  np.testing.assert_allclose(named, expected, rtol=1e-5, atol=1e-5)


def test_every_frame_is_seen_and_their_order_matters():
  config = CONFIGS["mha_two_frames"]
  inputs = make_inputs(config)
  swapped = inputs._replace(images=inputs.images[:, ::-1])
  difference = apply(config, *swapped) - apply(config, *inputs)
  assert np.abs(difference).max(axis=(1, 2)).min() > 1e-3
  tokens = apply(config, inputs.images, method="embed_images")
  assert tokens.shape == (2, 2 * 4, 24)
  single = dataclasses.replace(config, num_images=1)
  for frame in range(2):
    alone = VLM(single).apply(
      {"params": params_of(config)},
      inputs.images[:, frame : frame + 1],
      method="embed_images",
    )
    np.testing.assert_allclose(
      tokens[:, 4 * frame : 4 * frame + 4], alone, atol=1e-5
    )


def test_cache_dtype_is_a_choice_and_defaults_to_that_of_the_decoder():
  config = CONFIGS["mqa"]
  prefill = functools.partial(
    apply,
    config,
    *make_inputs(config).prompt,
    method="prefill",
    answer_len=SUFFIX,
  )
  exact, state = prefill()
  assert state.cache.k.dtype == jnp.float32
  rounded, state = prefill(cache_dtype="bfloat16")
  assert state.cache.k.dtype == jnp.bfloat16
  assert 0 < np.abs(rounded - exact).max() < 0.1


def test_an_answer_longer_than_its_room_gives_nan():
  config = CONFIGS["mqa"]
  inputs = make_inputs(config)
  _, state = apply(config, *inputs.prompt, method="prefill", answer_len=SUFFIX)
  fits, state = apply(config, inputs.suffix, state, method="extend")
  too_long, _ = apply(config, inputs.suffix[:, :1], state, method="extend")
  assert np.isfinite(fits).all()
  assert np.isnan(too_long).all()


def test_bfloat16_keeps_float32_logits_close():
  exact = CONFIGS["gemma2"]
  config = VLMConfig(
    dataclasses.replace(exact.img, dtype="bfloat16"),
    dataclasses.replace(exact.llm, dtype="bfloat16"),
  )
  inputs = make_inputs(config)
  hidden, state = apply(config, *inputs.prompt, method="prefill", answer_len=1)
  assert hidden.dtype == state.cache.k.dtype == jnp.bfloat16
  logits = apply(config, *inputs)
  assert logits.dtype == jnp.float32
  assert 0 < np.abs(logits - apply(exact, *inputs)).max() < 0.2


@pytest.mark.parametrize("shape", [(2, 2, 8, 8, 3), (2, 8, 8, 3)])
def test_another_number_of_frames_is_refused(shape):
  config = CONFIGS["mqa"]
  inputs = make_inputs(config)._replace(images=np.zeros(shape, np.float32))
  with pytest.raises(ValueError, match="F = 1.*config.observation"):
    apply(config, *inputs)


def test_images_of_another_size_are_refused():
  config = CONFIGS["mqa"]
  images = np.zeros((2, 1, 12, 12, 3), np.float32)
  with pytest.raises(ValueError, match=r"expected \[B, 8, 8, 3\]"):
    apply(config, *make_inputs(config)._replace(images=images))


def test_init_params_are_a_function_of_the_key():
  config = CONFIGS["mqa"]
  draw = jax.jit(functools.partial(init_params, config))
  one, same, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, same)
  table = [tree["llm"]["embedder"]["input_embedding"] for tree in (one, other)]
  assert np.abs(table[0] - table[1]).max() > 0.1
  # Layers are drawn one by one, not copied along the stack.
  stack = one["llm"]["layers"]["mlp"]["linear"]
  assert np.abs(stack[0] - stack[1]).max() > 0.01

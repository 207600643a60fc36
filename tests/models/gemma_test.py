"""The decoder: cached equals uncached, and each formula on its own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.models import gemma
from rt2_jax.models.gemma import Gemma, KVCache
from rt2_jax.models.variants import GemmaConfig

MQA = GemmaConfig(24, 2, 48, 4, 1, 8, vocab_size=40)
MHA = dataclasses.replace(MQA, num_kv_heads=4)
GEMMA2 = dataclasses.replace(
  MQA, num_kv_heads=2, attn_softcap=5.0, final_softcap=2.0, post_norms=True
)
CONFIGS = {"mqa": MQA, "mha": MHA, "gemma2": GEMMA2}
LENGTH = 7


@functools.cache
def draw(config):
  """Parameters from numpy, which needs no compiler; no norm scale is zero."""

  def touch_all(model, tokens):
    x = model.embed(tokens)
    mask = jnp.ones((1, 1, 1), bool)
    return model.logits(model(x, mask, jnp.zeros((1, 1), int)))

  init = functools.partial(Gemma(config).init, method=touch_all)
  tokens = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(init, jax.random.key(0), tokens)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(leaf.dtype),
    shapes,
  )


@functools.cache
def compiled(config, method):
  return jax.jit(functools.partial(Gemma(config).apply, method=method))


def apply(config, params, *args, method="__call__"):
  return compiled(config, method)({"params": params}, *args)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def config(request):
  return request.param


@pytest.fixture(scope="module")
def params(config):
  return draw(config)


@pytest.fixture(scope="module")
def inputs(config, params):
  """Two causal rows: x float32[2, T, D], mask, positions."""
  tokens = jax.random.randint(jax.random.key(2), (2, LENGTH), 0, 40)
  x = apply(config, params, tokens, method="embed")
  mask = jnp.tril(jnp.ones((2, LENGTH, LENGTH), bool))
  positions = jnp.tile(jnp.arange(LENGTH), (2, 1))
  return x, mask, positions


@pytest.mark.parametrize("blocks", [[LENGTH], [1] * LENGTH, [3, 1, 3]])
def test_extend_in_any_blocks_equals_the_call(config, params, inputs, blocks):
  expected = apply(config, params, *inputs)
  room = 2  # slots that stay empty, and must not be seen
  cache = KVCache.empty(config, 2, LENGTH + room, "float32")
  x, mask, positions = inputs
  mask = jnp.pad(mask, ((0, 0), (0, 0), (0, room)))
  hidden, start = [], 0
  for size in blocks:
    end = start + size
    part = (x[:, start:end], mask[:, start:end], positions[:, start:end])
    block, cache = apply(config, params, *part, cache, method="extend")
    hidden.append(block)
    start = end
    assert int(cache.length) == end
  np.testing.assert_allclose(jnp.concatenate(hidden, 1), expected, atol=1e-4)


def test_a_bfloat16_cache_rounds_and_keeps_its_dtype(config, params, inputs):
  cache = KVCache.empty(config, 2, LENGTH, "bfloat16")
  hidden, cache = apply(config, params, *inputs, cache, method="extend")
  assert cache.k.dtype == cache.v.dtype == jnp.bfloat16
  assert cache.k.shape == (2, 2, LENGTH, config.num_kv_heads, 8)
  error = np.abs(hidden - apply(config, params, *inputs)).max()
  assert 0 < error < 0.1


def test_a_cache_without_room_gives_nan(config, params, inputs):
  """Never an answer that has overwritten its own beginning."""
  x, mask, positions = inputs
  last = (x[:, -1:], mask[:, -1:], positions[:, -1:])
  cache = KVCache.empty(config, 2, LENGTH, "float32")
  _, cache = apply(config, params, *inputs, cache, method="extend")
  hidden, _ = apply(config, params, *last, cache, method="extend")
  assert np.isnan(hidden).all()


def test_only_differences_of_positions_matter(config, params, inputs):
  x, mask, positions = inputs
  here = apply(config, params, x, mask, positions)
  shifted = apply(config, params, x, mask, positions + 100)
  stretched = apply(config, params, x, mask, positions * 2)
  np.testing.assert_allclose(here, shifted, atol=1e-3)
  assert np.abs(here - stretched).max() > 1e-2


@pytest.mark.parametrize("policy", ["full", "ungated", "dots"])
def test_remat_changes_neither_hidden_nor_gradients(policy):
  x = jax.random.normal(jax.random.key(3), (2, LENGTH, 24))
  mask = jnp.tril(jnp.ones((2, LENGTH, LENGTH), bool))
  positions = jnp.tile(jnp.arange(LENGTH), (2, 1))

  def loss(params, config):
    hidden = Gemma(config).apply({"params": params}, x, mask, positions)
    return (hidden**3).sum()

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  plain = grad(draw(GEMMA2), GEMMA2)
  remat = grad(draw(GEMMA2), dataclasses.replace(GEMMA2, remat=policy))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    plain,
    remat,
  )


@pytest.mark.parametrize(
  ("policy", "queries", "gates"),
  [("full", False, False), ("ungated", True, False), ("dots", True, True)],
)
def test_remat_keeps_what_its_policy_says(policy, queries, gates):
  config = dataclasses.replace(GEMMA2, remat=policy)
  x = jnp.zeros((3, LENGTH, 24))
  mask = jnp.ones((3, LENGTH, LENGTH), bool)
  positions = jnp.zeros((3, LENGTH), int)

  def backward(params):
    def hidden(params):
      return Gemma(config).apply({"params": params}, x, mask, positions)

    return jax.vjp(hidden, params)[1]

  kept = jax.tree.leaves(jax.eval_shape(backward, draw(GEMMA2)))
  sizes = {leaf.size for leaf in kept}
  tokens = GEMMA2.depth * 3 * LENGTH
  assert (tokens * 4 * 8 in sizes) == queries
  assert (tokens * 48 in sizes) == gates


def test_logits_of_are_rows_of_the_logits(config, params):
  hidden = 10 * jax.random.normal(jax.random.key(3), (2, 3, config.width))
  ids = jnp.array([39, 0, 17])
  full = apply(config, params, hidden, method="logits")
  some = apply(config, params, hidden, ids, method="logits_of")
  assert full.shape == (2, 3, 40) and full.dtype == jnp.float32
  np.testing.assert_allclose(some, full[..., ids], atol=1e-5)
  raw = hidden @ params["embedder"]["input_embedding"].T
  cap = config.final_softcap
  expected = cap * np.tanh(raw / cap) if cap else raw
  np.testing.assert_allclose(full, expected, atol=1e-4)


def test_embed_scales_rows_by_the_root_of_the_width():
  params = draw(MQA)
  tokens = jnp.array([[3, 39]])
  expected = params["embedder"]["input_embedding"][tokens] * 24**0.5
  actual = apply(MQA, params, tokens, method="embed")
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_a_token_outside_the_vocabulary_gives_nan():
  """Not the row of some other token."""
  x = apply(MQA, draw(MQA), jnp.array([[39, 40]]), method="embed")
  assert np.isnan(x).all(axis=-1).tolist() == [[False, True]]


def test_fused_qkv_equals_separate_projections():
  """Two layouts of the same weights: grouped heads, and each with a copy."""
  grouped = dataclasses.replace(MQA, num_kv_heads=2)
  params = draw(grouped)
  attn = params["layers"]["attn"]
  kv = jnp.repeat(attn["kv_einsum"]["w"], 2, axis=2)
  fused = {
    "qkv_einsum": {
      "w": jnp.concatenate([attn["q_einsum"]["w"][:, None], kv], axis=1)
    },
    "attn_vec_einsum": attn["attn_vec_einsum"],
  }
  fused = {**params, "layers": {**params["layers"], "attn": fused}}
  x = jax.random.normal(jax.random.key(4), (2, LENGTH, 24))
  mask = jnp.tril(jnp.ones((2, LENGTH, LENGTH), bool))
  positions = jnp.tile(jnp.arange(LENGTH), (2, 1))
  np.testing.assert_allclose(
    apply(MHA, fused, x, mask, positions),
    apply(grouped, params, x, mask, positions),
    atol=1e-4,
  )


def test_rope_rotates_halves():
  """Position 0 turns nothing; the pair (0, 4) turns by `position` radians."""
  x = jax.random.normal(jax.random.key(5), (1, 2, 3, 8))
  turned = gemma.rope(x, jnp.array([[0, 2]]))
  np.testing.assert_allclose(turned[:, 0], x[:, 0], atol=1e-6)
  a, b = x[0, 1, :, 0], x[0, 1, :, 4]
  expected = [a * np.cos(2) - b * np.sin(2), b * np.cos(2) + a * np.sin(2)]
  actual = [turned[0, 1, :, 0], turned[0, 1, :, 4]]
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  slowest = 2 * 10_000 ** (-3 / 4)
  a, b = x[0, 1, :, 3], x[0, 1, :, 7]
  np.testing.assert_allclose(
    turned[0, 1, :, 3], a * np.cos(slowest) - b * np.sin(slowest), atol=1e-5
  )


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_attend_equals_the_formula(softcap):
  """With repeated heads, in float64, capped before it is masked."""
  rng = np.random.default_rng(6)
  q = rng.normal(size=(2, 3, 4, 8))
  k, v = rng.normal(size=(2, 2, 5, 2, 8))
  mask = rng.random((2, 3, 5)) < 0.5
  mask[:, :, 0] = True
  logits = np.einsum("btnh,bsnh->bnts", q, k.repeat(2, axis=2))
  if softcap:
    logits = softcap * np.tanh(logits / softcap)
  weights = np.exp(logits) * mask[:, None]
  weights /= weights.sum(axis=-1, keepdims=True)
  expected = np.einsum("bnts,bsnh->btnh", weights, v.repeat(2, axis=2))
  q, k, v = (jnp.asarray(a, jnp.float32) for a in (q, k, v))
  actual = gemma.attend(q, k, v, jnp.asarray(mask), softcap)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_rms_norm_adds_one_to_its_scale():
  x = jnp.array([[3.0, -4.0]])
  params = {"scale": jnp.array([0.0, 1.0])}
  rms = 12.5**0.5
  np.testing.assert_allclose(
    gemma.RMSNorm().apply({"params": params}, x),
    [[3 / rms, 2 * -4 / rms]],
    rtol=1e-6,
  )


def test_query_scale_defaults_to_the_head_and_can_be_set():
  attn = jax.tree.map(lambda leaf: leaf[0], draw(MQA)["layers"]["attn"])
  x = jax.random.normal(jax.random.key(7), (1, 3, 24))

  @functools.partial(jax.jit, static_argnums=0)
  def project(config):
    return gemma.Attention(config).apply(
      {"params": attn}, x, jnp.arange(3)[None], method="project"
    )

  default, k, _ = project(MQA)
  scaled, same_k, _ = project(dataclasses.replace(MQA, query_scale=0.5))
  np.testing.assert_allclose(scaled, default * (0.5 * 8**0.5), rtol=1e-5)
  np.testing.assert_array_equal(same_k, k)


def test_untrained_projections_keep_the_scale_of_their_input():
  """Each is drawn for its true fan-in, though N * H is not D here."""
  config = GemmaConfig(128, 1, 512, 8, 2, 64, query_scale=1.0)
  x = jax.random.normal(jax.random.key(8), (1, 16, 128))
  itself = jnp.eye(16, dtype=bool)[None]  # a mean over keys would shrink v

  def attention(module, x):
    q, k, v = module.project(x, jnp.arange(16)[None])
    return q, k, v, module.read(q, k, v, itself)

  run = gemma.Attention(config).init_with_output
  run = jax.jit(functools.partial(run, method=attention))
  outputs, _ = run(jax.random.key(9), x)
  for output in outputs:
    np.testing.assert_allclose(output.std(), 1, rtol=0.15)
  run = jax.jit(gemma.GatedMlp(config).init_with_output)
  mlp, _ = run(jax.random.key(9), x)
  gate = jax.random.normal(jax.random.key(10), (100_000,))
  expected = (jax.nn.gelu(gate) ** 2).mean() ** 0.5
  np.testing.assert_allclose(mlp.std(), expected, rtol=0.15)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
  config = dataclasses.replace(GEMMA2, dtype="bfloat16")
  params = draw(config)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
  x = apply(config, params, jnp.array([[1, 2, 3]]), method="embed")
  mask, positions = jnp.ones((1, 3, 3), bool), jnp.arange(3)[None]
  hidden = apply(config, params, x, mask, positions)
  assert x.dtype == hidden.dtype == jnp.bfloat16
  assert apply(config, params, hidden, method="logits").dtype == jnp.float32
  exact = apply(GEMMA2, params, x.astype("float32"), mask, positions)
  assert 0 < np.abs(hidden - exact).max() < 0.2

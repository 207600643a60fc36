"""Layers one after the other give what the loop over all of them gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.held_params import apart
from rt2_jax.models import layers
from rt2_jax.models.vlm import VLM
from rt2_jax.weights import int8
from tests import tiny_models

VOCABULARY = 40


@pytest.fixture(scope="module", params=["gemma1", "gemma2", "gemma1_7b"])
def config(request):
  return tiny_models.config(request.param, VOCABULARY)


@pytest.fixture(scope="module")
def params(config):
  return jax.tree.map(jnp.asarray, tiny_models.params(config))


def inputs(config):
  rng = np.random.default_rng(1)
  side = config.img.image_size
  images = rng.uniform(-1, 1, (2, 1, side, side, 3)).astype(np.float32)
  prefix, suffix = rng.integers(3, VOCABULARY, (2, 2, 5), dtype=np.int32)
  return images, prefix, np.ones((2, 5), bool), suffix


def outputs(config, params):
  """Logits in training; hidden and cache of acting; attention weights."""
  *prompt, suffix = inputs(config)
  apply = functools.partial(VLM(config).apply, {"params": params})

  @jax.jit
  def run():
    logits = apply(*prompt, suffix)
    hidden, state = apply(*prompt, answer_len=3, method="prefill")
    following, state = apply(suffix[:, :2], state, method="extend")
    return logits, hidden, following, state.cache

  return jax.device_get(run())


def equal_but_for_rounding(got, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale)


def test_results_are_those_of_the_loop(config, params):
  expected = outputs(config, params)
  got = outputs(config, apart(dict(params)))
  jax.tree.map(equal_but_for_rounding, got, expected)


def test_each_layer_shows_its_attention(config, params):
  """As one array of all layers, or as an array of each."""

  def shown(params):
    _, kept = VLM(config).apply(
      {"params": params},
      *inputs(config)[:3],
      answer_len=1,
      method="prefill",
      mutable=[layers.INTERMEDIATES],
    )
    return jax.tree.leaves(kept)

  (together,) = shown(params)
  each = shown(apart(dict(params)))
  np.testing.assert_allclose(np.stack(each), together, atol=2e-5)


@pytest.mark.parametrize("first", ["rounded", "apart"])
def test_matrices_of_8_bits_are_held_apart_too(config, params, first):
  expected = outputs(config, int8.quantize(params))
  if first == "rounded":
    held = apart(int8.quantize(params))
  else:
    held = int8.quantize(apart(dict(params)))
  got = outputs(config, held)
  jax.tree.map(equal_but_for_rounding, got, expected)

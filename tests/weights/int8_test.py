"""Matrices of 8 bits: within half a step of each output's own scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax import parameters, trees
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.models.weight import Int8
from rt2_jax.weights import int8
from tests import tiny_models


@pytest.fixture(scope="module")
def model(tokenizer) -> VLMConfig:
  return tiny_models.config("gemma2", tokenizer.vocab_size)


@pytest.fixture(scope="module")
def params(model) -> dict:
  return jax.tree.map(jnp.asarray, tiny_models.params(model))


def test_every_matrix_of_a_product_is_rounded_by_its_outputs(params):
  flat, found = trees.flatten(params), trees.flatten(int8.quantize(params))
  assert set(found) == set(flat)
  rounded = {name for name, x in found.items() if isinstance(x, Int8)}
  products = ("kernel", "einsum", "linear", "/w")
  patches = "img/embedding/kernel"  # a convolution
  assert rounded == {n for n in flat if n.endswith(products)} - {patches}
  for name, x in flat.items():
    if name not in rounded:
      assert found[name] is x
      continue
    x, (values, scale) = jax.device_get((x, found[name]))
    assert values.dtype == np.int8 and values.shape == x.shape
    summed = parameters.row(name).matrix.inputs
    largest = np.abs(x).max(summed, keepdims=True)
    np.testing.assert_allclose(scale, largest / 127.5, rtol=0.01)
    error = np.abs(values * scale - x)
    assert (error <= 0.51 * scale).all(), name


def test_a_model_of_such_matrices_computes_the_products(model, params):
  """As one whose matrices are the rounded ones, in float32."""
  rounded = int8.quantize(params)
  whole = jax.tree.map(
    lambda x: x.astype("float32"),
    rounded,
    is_leaf=lambda x: isinstance(x, Int8),
  )
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32)
  ids, mask = rng.integers(3, 99, (2, 5)), np.ones((2, 5), bool)
  run = jax.jit(
    lambda p: VLM(model).apply({"params": p}, images, ids, mask, ids)
  )
  logits = run(rounded)
  np.testing.assert_allclose(logits, run(whole), rtol=1e-5, atol=1e-5)
  exact = run(params)
  assert 0 < jnp.abs(logits - exact).max() < 0.1 * jnp.abs(exact).max()

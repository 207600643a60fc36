"""Matrices of 8 bits: within half a step of each output's own scale."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax import parameters, trees
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.models.weight import Int8, Weight, multiply
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


@pytest.fixture(scope="module")
def run(model) -> Callable:
  """Logits of some questions, by a tree of parameters."""
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32)
  ids, mask = rng.integers(3, 99, (2, 5)), np.ones((2, 5), bool)
  return lambda params: VLM(model).apply(
    {"params": params}, images, ids, mask, ids
  )


def test_a_model_of_such_matrices_computes_the_products(params, run):
  """As one whose matrices are the rounded ones, in float32."""
  rounded = int8.quantize(params)
  whole = jax.tree.map(
    lambda x: x.values * x.scale if isinstance(x, Int8) else x,
    rounded,
    is_leaf=lambda x: isinstance(x, Int8),
  )
  logits = jax.jit(run)(rounded)
  np.testing.assert_allclose(logits, jax.jit(run)(whole), rtol=1e-5, atol=1e-5)
  exact = jax.jit(run)(params)
  assert 0 < jnp.abs(logits - exact).max() < 0.1 * jnp.abs(exact).max()


def test_no_matrix_is_computed_before_its_product(params, run):
  """XLA would write it out, which takes longer than to read it in 16 bits."""
  rounded = int8.quantize(params)
  matrices = {
    each
    for x in trees.flatten(rounded).values()
    if isinstance(x, Int8)
    for each in (x.values.shape, x.values.shape[1:])
  }
  program = str(jax.make_jaxpr(run)(rounded))
  multiplied = {
    tuple(map(int, shape.split(",")))
    for shape in re.findall(r":\w+\[([\d,]+)\] = mul ", program)
  }
  assert multiplied and not multiplied & matrices


def test_an_adapter_lies_beside_such_a_matrix():
  rng = np.random.default_rng(0)
  x, w, a, b = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((2, 3, 8), (2, 4, 8, 5), (2, 8, 2), (2, 2, 4, 5))
  )
  equation = "btd,cndh->cbtnh"
  values = jnp.round(20 * w).astype(jnp.int8)
  scale = jnp.asarray(rng.uniform(0.04, 0.06, (2, 4, 1, 5)), jnp.float32)
  found = multiply(x, Weight(equation, Int8(values, scale), a, b, 0.5))
  expected = multiply(x, Weight(equation, values * scale, a, b, 0.5))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

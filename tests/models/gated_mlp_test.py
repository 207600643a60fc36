"""The gradients that are written by hand are those that JAX would make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.models.gated_mlp import product

B, T, D, F = 3, 5, 7, 11


def plain(x, w):
  return jnp.einsum("btd,df->btf", x, w)


def draw(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
  ("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 2e-2)]
)
def test_gradients_are_those_of_the_plain_product(dtype, rtol):
  x, w = draw(0, B, T, D).astype(dtype), draw(1, D, F).astype(dtype)
  ours, back = jax.vjp(product, x, w)
  expected, plain_back = jax.vjp(plain, x, w)
  np.testing.assert_array_equal(ours, expected)
  gradient = draw(2, B, T, F).astype(dtype)
  for found, wanted in zip(back(gradient), plain_back(gradient), strict=True):
    assert found.dtype == wanted.dtype == dtype
    np.testing.assert_allclose(
      found.astype("float32"), wanted.astype("float32"), rtol=rtol, atol=rtol
    )


def test_the_gradient_of_a_weight_is_summed_over_one_axis():
  """Over two, a CPU writes transposed copies of both factors first."""

  def of_w(x, w, gradient):
    return jax.vjp(lambda w: product(x, w), w)[1](gradient)

  shapes = (B, T, D), (D, F), (B, T, F)
  arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
  text = jax.jit(of_w).lower(*arguments).as_text()
  assert "contracting_dims = [0] x [0]" in text
  assert "contracting_dims = [0, 1] x [0, 1]" not in text

"""Gradients written by hand are those that JAX would find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.models.token_table import lookup, scores


@pytest.mark.parametrize("vocab", [37, 2**16 + 3])  # the second is padded
def test_gradients_are_those_of_the_plain_products(vocab):
  table, hidden, to = (
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate([(vocab, 8), (2, 3, 8), (2, 3, vocab)])
  )
  ids = jnp.array([[1, 5, 5], [36, 0, 5]])

  def plain(table, hidden):
    read = jnp.take(table, ids, axis=0)
    return jnp.vdot(jnp.einsum("...d,vd->...v", hidden + read, table), to)

  def ours(table, hidden):
    read = lookup(table, ids, "float32")
    return jnp.vdot(scores(hidden + read, table), to)

  expected = jax.grad(plain, argnums=(0, 1))(table, hidden)
  found = jax.grad(ours, argnums=(0, 1))(table, hidden)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_rows_that_are_read_often_add_up_in_float32():
  """In bfloat16 256 + 1 would be 256."""
  table = jnp.zeros((4, 2))
  ids = jnp.ones((1, 1000), jnp.int32)
  gradient = jax.grad(lambda t: lookup(t, ids, "bfloat16").sum())(table)
  np.testing.assert_array_equal(gradient[1], [1000.0, 1000.0])
  assert gradient.dtype == jnp.float32


def test_an_unknown_id_gives_nan():
  assert jnp.isnan(
    lookup(jnp.zeros((4, 2)), jnp.array([[4]]), "bfloat16")
  ).all()

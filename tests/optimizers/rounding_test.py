"""Stochastic rounding: right on average, exact where nothing is cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.optimizers.rounding import add_updates, to_bfloat16

KEY = jax.random.key(0)


@pytest.mark.parametrize("x", [1.001, -0.3333, 1e-20, 3.0e38])
def test_the_mean_is_the_number_and_each_draw_a_neighbour(x):
  x = np.float32(x)
  draws = np.asarray(to_bfloat16(jnp.full(40_000, x), KEY), np.float64)
  low, high = np.unique(draws)
  assert low < x < high and high - low <= abs(x) * 2.0**-7
  deviation = (high - low) / 2 / np.sqrt(len(draws))
  assert abs(draws.mean() - x) < 5 * deviation


def test_what_bfloat16_holds_and_what_is_no_number_stay():
  exact = jnp.array([0.0, -1.0, 0.5, 3.140625, jnp.inf, -jnp.inf, jnp.nan])
  rounded = to_bfloat16(jnp.tile(exact, 1000), KEY).astype(jnp.float32)
  np.testing.assert_array_equal(rounded, jnp.tile(exact, 1000))


def test_small_updates_are_not_lost():
  """Each is a fortieth of the last bit; to nearest, all would vanish."""
  params = {"w": jnp.ones(512, jnp.bfloat16), "b": jnp.ones(3)}
  update = {"w": jnp.full(512, 1e-4), "b": jnp.full(3, 1e-4)}

  def step(params, i):
    return add_updates(params, update, jax.random.fold_in(KEY, i)), None

  moved, _ = jax.lax.scan(step, params, jnp.arange(1000))
  assert moved["w"].dtype == jnp.bfloat16 and moved["b"].dtype == jnp.float32
  assert abs(np.mean(np.asarray(moved["w"], np.float32)) - 1.1) < 2e-3
  np.testing.assert_allclose(moved["b"], 1.1, rtol=1e-4)
  nearest = params["w"] + update["w"].astype(jnp.bfloat16)
  np.testing.assert_array_equal(nearest, params["w"])

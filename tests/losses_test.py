"""The loss by hand."""

import jax.numpy as jnp
import numpy as np

from rt2_jax.losses import answer_loss


def test_mean_over_each_examples_answer():
  logits = np.log(
    [
      [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]],
      [[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]],
    ]
  )
  suffix = jnp.array([[0, 1], [2, 0]])
  mask_loss = jnp.array([[1.0, 1.0], [1.0, 0.0]])
  loss = answer_loss(jnp.asarray(logits), suffix, mask_loss)
  expected = [-(np.log(0.5) + np.log(0.8)) / 2, -np.log(0.6)]
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_an_example_without_an_answer_costs_nothing():
  loss = answer_loss(
    jnp.ones((1, 2, 5)), jnp.zeros((1, 2), int), jnp.zeros((1, 2))
  )
  np.testing.assert_array_equal(loss, [0.0])

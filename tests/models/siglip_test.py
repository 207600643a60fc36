"""The encoder: where a patch ends up, precision, recomputation, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax.models.siglip import Siglip, sines_and_cosines
from rt2_jax.models.variants import SiglipConfig

CONFIG = SiglipConfig(16, 2, 32, 4, patch_size=4, image_size=12)


@pytest.fixture(scope="module")
def images():
  return jax.random.uniform(jax.random.key(0), (2, 12, 12, 3), minval=-1.0)


@pytest.fixture(scope="module")
def params(images):
  return jax.jit(Siglip(CONFIG, 24).init)(jax.random.key(1), images)["params"]


@functools.cache
def compiled(config, method):
  return jax.jit(functools.partial(Siglip(config, 24).apply, method=method))


def apply(config, params, images, method="__call__"):
  return compiled(config, method)({"params": params}, images)


def test_one_token_per_patch_row_by_row(params, images):
  """Repainting the patch in row 1, column 2 of 3 x 3 changes token 5."""
  repainted = images.at[:, 4:8, 8:12].multiply(-1)
  before = apply(CONFIG, params, images, method="embed")
  after = apply(CONFIG, params, repainted, method="embed")
  assert before.shape == (2, 9, 16)
  changed = np.abs(after - before).max(axis=(0, 2)) > 1e-3
  assert changed.tolist() == [i == 5 for i in range(9)]


def test_a_patch_is_projected_by_the_kernel(params, images):
  kernel, bias = params["embedding"]["kernel"], params["embedding"]["bias"]
  expected = jnp.einsum("bhwc,hwcd->bd", images[:, 8:, :4], kernel) + bias
  tokens = apply(CONFIG, params, images, method="embed")
  np.testing.assert_allclose(tokens[:, 6], expected, atol=1e-5)


def test_positions_tell_equal_patches_apart(params):
  tokens = apply(CONFIG, params, jnp.zeros((1, 12, 12, 3)))
  assert np.abs(tokens[0, 1:] - tokens[0, :-1]).max(axis=1).min() > 1e-2


def test_untrained_positions_say_how_far_apart_patches_are():
  table = np.asarray(sines_and_cosines(None, (1, 36, 32)))[0]
  assert np.abs(table).max() <= 1.0
  alike = (table @ table.T).reshape(6, 6, 6, 6)
  # Only the difference counts, and the nearer the more alike.
  np.testing.assert_allclose(alike[1, 1, 2, 3], alike[3, 2, 4, 4], atol=1e-4)
  assert alike[0, 0, 0, 0] > alike[0, 0, 0, 1] > alike[0, 0, 1, 1]
  assert alike[2, 2, 2, 3] > alike[2, 2, 2, 4]


def test_encode_is_normalised_and_the_call_projects_it(params, images):
  encoded = apply(CONFIG, params, images, method="encode")
  np.testing.assert_allclose(encoded.mean(axis=-1), 0, atol=1e-5)
  np.testing.assert_allclose(encoded.std(axis=-1), 1, atol=1e-3)
  head = params["head"]
  tokens = apply(CONFIG, params, images)
  np.testing.assert_allclose(
    tokens, encoded @ head["kernel"] + head["bias"], atol=1e-5
  )


def test_untrained_tokens_depend_on_the_image(params, images):
  """The head does not start at zero."""
  tokens = apply(CONFIG, params, images)
  assert np.abs(tokens[0] - tokens[1]).max() > 0.1


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(images):
  config = dataclasses.replace(CONFIG, dtype="bfloat16")
  init = jax.jit(Siglip(config, 24).init)
  params = init(jax.random.key(1), images)["params"]
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
  rounded = apply(config, params, images)
  assert rounded.dtype == jnp.bfloat16
  exact = apply(CONFIG, params, images)
  assert 0 < np.abs(rounded - exact).max() < 0.1


@pytest.mark.parametrize("policy", ["full", "ungated", "dots"])
def test_remat_changes_neither_tokens_nor_gradients(params, images, policy):
  def loss(params, config):
    return (Siglip(config, 24).apply({"params": params}, images) ** 2).sum()

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  plain = grad(params, CONFIG)
  remat = grad(params, dataclasses.replace(CONFIG, remat=policy))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    plain,
    remat,
  )


def test_ungated_keeps_all_products_of_the_encoder(params, images):
  """It has no gated MLP."""

  def kept(policy):
    def tokens(params):
      config = dataclasses.replace(CONFIG, remat=policy)
      return Siglip(config, 24).apply({"params": params}, images)

    backward = jax.eval_shape(lambda params: jax.vjp(tokens, params)[1], params)
    return sorted(leaf.shape for leaf in jax.tree.leaves(backward))

  assert kept("full") != kept("ungated") == kept("dots")


@pytest.mark.parametrize(
  "shape", [(2, 12, 16, 3), (2, 16, 16, 3), (2, 12, 12, 4), (12, 12, 3)]
)
def test_images_of_another_size_are_refused(params, shape):
  with pytest.raises(ValueError, match=r"expected \[B, 12, 12, 3\]"):
    apply(CONFIG, params, jnp.zeros(shape))

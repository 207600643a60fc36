"""Schedule, decay by name, clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rt2_jax import optimizer, trees
from rt2_jax.models import variants
from rt2_jax.models.vlm import init_params

CONFIG = optimizer.OptimizerConfig(
  learning_rate=1e-2, warmup_steps=10, weight_decay=0.1
)


@pytest.mark.parametrize("llm", ["gemma_2b", "gemma_7b", "gemma2_2b"])
def test_every_matrix_decays_and_nothing_else(llm):
  config = variants.vlm("So400m/14", llm)
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  mask = trees.flatten(optimizer.decay_mask(params))
  kept = {name for name, decays in mask.items() if not decays}
  assert "llm/embedder/input_embedding" in kept and "img/pos_embedding" in kept
  assert all(name.endswith(("scale", "bias", "embedding")) for name in kept), (
    kept
  )
  flat = trees.flatten(params)
  decayed = sum(flat[name].size for name in mask if mask[name])
  embedding = flat["llm/embedder/input_embedding"].size
  assert decayed > 0.99 * (optimizer.count_parameters(params) - embedding)


@pytest.mark.parametrize("llm", list(variants.DECODERS))
def test_every_decay_rule_matches_something(llm):
  config = variants.vlm("tiny/16", llm, image_size=32)
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  trees.matching(trees.flatten(params), optimizer.DECAYED, "decay rule")


def test_the_schedule_warms_up_and_ends():
  rate = optimizer.learning_rate(CONFIG, 100)
  np.testing.assert_allclose(
    [rate(0), rate(5), rate(10), rate(100)], [0, 5e-3, 1e-2, 0], atol=1e-7
  )


def test_a_constant_schedule_stays_at_its_peak():
  constant = dataclasses.replace(CONFIG, schedule="constant")
  rate = optimizer.learning_rate(constant, 100)
  np.testing.assert_allclose(
    [rate(0), rate(5), rate(10), rate(100)], [0, 5e-3, 1e-2, 1e-2], atol=1e-7
  )


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("name", "adam", "'adam' for config.optimizer.name, .* mean 'adamw'"),
    ("schedule", "step", "'step' for config.optimizer.schedule, expected one"),
    ("ema_decay", 1.0, r"ema_decay = 1\.0, expected at least 0 .* less than 1"),
  ],
)
def test_a_wrong_choice_is_named(field, value, message):
  with pytest.raises(ValueError, match=message):
    optimizer.make_optimizer(dataclasses.replace(CONFIG, **{field: value}), 100)


def test_adamw_is_optax_adamw():
  """The parts are chained by hand so that all optimizers share the others."""
  params = {"img": {"head": {"kernel": jnp.full((3, 2), 0.5)}}}
  grads = {"img": {"head": {"kernel": jnp.array([[1.0, -2], [3, 4], [0, 9]])}}}
  ours = optimizer.make_optimizer(
    dataclasses.replace(CONFIG, clip_norm=0.0), 100
  )
  theirs = optax.adamw(optimizer.learning_rate(CONFIG, 100), weight_decay=0.1)
  ours_state, theirs_state = ours.init(params), theirs.init(params)
  for _ in range(4):
    a, ours_state = ours.update(grads, ours_state, params)
    b, theirs_state = theirs.update(grads, theirs_state, params)
  np.testing.assert_allclose(
    a["img"]["head"]["kernel"], b["img"]["head"]["kernel"], rtol=1e-6
  )


def test_adafactor_keeps_almost_no_state():
  params = {"img": {"head": {"kernel": jnp.ones((512, 256))}}}
  config = dataclasses.replace(CONFIG, name="adafactor")
  state = optimizer.make_optimizer(config, 100).init(params)
  assert optimizer.count_parameters(state) < 800


def test_a_first_moment_in_half_the_memory():
  params = {"img": {"head": {"kernel": jnp.ones((4, 2))}}}
  config = dataclasses.replace(CONFIG, moment_dtype="bfloat16")
  state = optimizer.make_optimizer(config, 100).init(params)
  dtypes = [str(x.dtype) for x in jax.tree.leaves(state) if x.ndim]
  assert sorted(dtypes) == ["bfloat16", "float32"]


def test_warmup_longer_than_training_is_refused():
  with pytest.raises(ValueError, match="warmup_steps = 10, expected less than"):
    optimizer.learning_rate(CONFIG, 10)


def test_muon_turns_every_layer_as_much_in_all_directions():
  """Orthogonal matrices, one for each layer, as large as AdamW's updates."""
  key = jax.random.key(0)
  kernel = jax.random.normal(key, (3, 8, 2, 8))  # layers, inputs, heads
  params = {
    "llm": {
      "layers": {"attn": {"q_einsum": {"w": jnp.moveaxis(kernel, 2, 1)}}}
    },
    "img": {"Transformer": {"encoder_norm": {"scale": jnp.ones(8)}}},
  }
  config = dataclasses.replace(
    CONFIG, name="muon", schedule="constant", clip_norm=0.0, weight_decay=0.0
  )
  transform = optimizer.make_optimizer(config, 100)
  state = transform.init(params)
  for _ in range(CONFIG.warmup_steps + 1):
    updates, state = transform.update(params, state, params)
  turn = updates["llm"]["layers"]["attn"]["q_einsum"]["w"]
  turn = jnp.moveaxis(turn, 1, 2).reshape(3, 8, 16) / CONFIG.learning_rate
  strengths = jnp.linalg.svd(turn, compute_uv=False)
  # Five Newton-Schulz steps bring singular values near 1, not to it.
  assert 0.6 < float(strengths.min() / 0.8) < float(strengths.max() / 0.8) < 1.3
  scale = updates["img"]["Transformer"]["encoder_norm"]["scale"]
  np.testing.assert_allclose(scale, -CONFIG.learning_rate, rtol=2e-2)


@pytest.mark.parametrize("llm", ["gemma_2b", "gemma_7b", "gemma2_2b"])
def test_muon_knows_every_matrix_within_a_layer(llm):
  """A weight with another name would be left to AdamW unnoticed."""
  config = variants.vlm("So400m/14", llm)
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  axes = trees.flatten(optimizer.matrix_axes(params))
  decayed = trees.flatten(optimizer.decay_mask(params))
  left = {name for name in decayed if decayed[name] and axes[name] is None}
  assert left == {"img/embedding/kernel"}
  assert not [name for name in axes if axes[name] and not decayed[name]]


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_step_on_a_quadratic_goes_down(name):
  params = {
    "img": {"head": {"kernel": jnp.full((2, 2), 3.0)}},
    "llm": {
      "attn_vec_einsum": {"w": jnp.ones((1, 2, 2))},
      "mlp": {"linear": jnp.ones((2, 2))},
    },
  }
  config = dataclasses.replace(CONFIG, name=name)
  transform = optimizer.make_optimizer(config, 100)
  state = transform.init(params)
  for _ in range(30):
    updates, state = transform.update(params, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  assert params["img"]["head"]["kernel"].max() < 2.95

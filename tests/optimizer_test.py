"""Schedule, decay by name, clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rt2_jax import optimizer, sharding, trees
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


@pytest.mark.parametrize("warmup", [0, 1, 7, 39])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_schedule_is_its_formula_at_every_step(schedule, warmup):
  peak, end, last = 1e-2, 1e-3, 40
  config = optimizer.OptimizerConfig(
    peak, warmup, schedule=schedule, end_learning_rate=end
  )
  rate = optimizer.learning_rate(config, last)
  steps = np.arange(last + 10)
  after = np.full(len(steps), peak)
  if schedule == "cosine":
    done = np.clip((steps - warmup) / (last - warmup), 0, 1)
    after = end + (peak - end) * (1 + np.cos(np.pi * done)) / 2
  expected = np.where(steps < warmup, peak * steps / max(warmup, 1), after)
  got = [float(rate(step)) for step in steps]
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose(
    jax.jit(rate)(jnp.asarray(steps)), expected, rtol=1e-6, atol=1e-9
  )
  np.testing.assert_allclose(got[warmup], peak, rtol=1e-6)


def test_the_first_step_moves_where_nothing_warms_up():
  config = dataclasses.replace(CONFIG, warmup_steps=0, schedule="constant")
  params = {"img": {"head": {"kernel": jnp.ones((2, 2))}}}
  transform = optimizer.make_optimizer(config, 100)
  updates, _ = transform.update(params, transform.init(params), params)
  assert np.abs(updates["img"]["head"]["kernel"]).min() > 0.9 * 1e-2


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("name", "adam", "'adam' for config.optimizer.name, .* mean 'adamw'"),
    ("schedule", "step", "'step' for config.optimizer.schedule, expected one"),
    ("ema_decay", 1.0, r"ema_decay = 1\.0, expected at least 0 .* less than 1"),
    ("learning_rate", float("nan"), "learning_rate = nan, expected at least 0"),
    (
      "end_learning_rate",
      -1.0,
      "end_learning_rate = -1.0, expected at l",
    ),
    ("warmup_steps", -1, "warmup_steps = -1, expected at least 0"),
    ("weight_decay", -0.1, r"weight_decay = -0\.1, expected at least 0"),
    ("clip_norm", -1.0, r"clip_norm = -1\.0, expected at least 0"),
    ("b2", 1.0, r"b2 = 1\.0, expected at least 0 and less than 1"),
    ("moment_dtype", "float8", "'float8' for config.optimizer.moment_dtype"),
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


@pytest.mark.parametrize("llm", ["gemma_2b", "gemma_7b", "gemma2_2b"])
def test_muon_knows_every_matrix_within_a_layer(llm):
  """A weight with another name would be left to AdamW unnoticed."""
  config = variants.vlm("So400m/14", llm)
  params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  by = trees.flatten(optimizer.muon_or_adamw(params))
  decayed = trees.flatten(optimizer.decay_mask(params))
  left = {n for n in decayed if decayed[n] and by[n] == "adamw"}
  assert left == {"img/embedding/kernel"}
  assert not [n for n in by if by[n] == "muon" and not decayed[n]]


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


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_matrix_that_is_split_over_a_mesh_moves_as_a_whole_one(name):
  drawn = np.random.default_rng(0).normal
  params = trees.unflatten(
    {
      "llm/layers/attn/kv_einsum/w": np.float32(drawn(size=(2, 2, 1, 8, 6))),
      "llm/layers/mlp/linear": np.float32(drawn(size=(2, 16, 8))),
      "llm/layers/pre_ffw_norm/scale": np.float32(drawn(size=(2, 8))),
      "llm/embedder/input_embedding": np.float32(drawn(size=(32, 8))),
    }
  )
  config = dataclasses.replace(CONFIG, name=name, warmup_steps=0)
  transform = optimizer.make_optimizer(config, 100)
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
  state = transform.init(params)
  split = [
    jax.device_put(tree, sharding.state_shardings(tree, mesh))
    for tree in (params, state)
  ]
  update = jax.jit(transform.update)
  whole, _ = update(params, state, params)
  parts, _ = update(split[0], split[1], split[0])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7),
    whole,
    parts,
  )

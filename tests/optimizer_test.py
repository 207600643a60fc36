"""Schedule, decay by name, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
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


def test_a_rule_that_matches_nothing_is_an_error():
  with pytest.raises(
    ValueError, match=r"got weight decay rule 'kernel\$', whi"
  ):
    optimizer.decay_mask({"llm": {"final_norm": {"scale": 0}}})


def test_the_schedule_warms_up_and_ends():
  rate = optimizer.learning_rate(CONFIG, 100)
  np.testing.assert_allclose(
    [rate(0), rate(5), rate(10), rate(100)], [0, 5e-3, 1e-2, 0], atol=1e-7
  )


def test_warmup_longer_than_training_is_refused():
  with pytest.raises(ValueError, match="warmup_steps = 10, expected less than"):
    optimizer.learning_rate(CONFIG, 10)


def test_a_step_on_a_quadratic_goes_down():
  params = {
    "img": {"head": {"kernel": jnp.full((2, 2), 3.0)}},
    "llm": {
      "attn_vec_einsum": {"w": jnp.ones((2, 2))},
      "mlp": {"linear": jnp.ones((2, 2))},
    },
  }
  transform = optimizer.make_optimizer(CONFIG, 100)
  state = transform.init(params)
  for _ in range(30):
    updates, state = transform.update(params, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  assert params["img"]["head"]["kernel"].max() < 2.9

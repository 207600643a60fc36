"""Masked actions: what is hidden, and that nothing hidden is learnt from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax import optimizer, sharding
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import RareTokens
from rt2_jax.augment import Augmentation
from rt2_jax.batch import Batch
from rt2_jax.masked_actions import hidden_tokens
from rt2_jax.models import variants
from rt2_jax.train_state import Trainer

TOKENIZER = ActionTokenizer(RT2, RareTokens(tuple(range(40, 296))))
TOKENIZERS = (TOKENIZER, None)  # a robot, and the web
PLAN = 3  # tokens before an action


def make_batch(rows: int, plan: int = 0) -> Batch:
  """Answers of a robot and, in every fourth row, of the web."""
  rng = np.random.default_rng(0)
  suffix = np.zeros((rows, plan + 11), np.int32)
  suffix[:, : plan + 8] = rng.integers(40, 42, (rows, plan + 8))
  suffix[:, plan + 8] = 1
  return Batch(
    image=rng.integers(0, 256, (rows, 1, 8, 8, 3), np.uint8),
    image_size=np.full((rows, 1, 2), 8, np.int32),
    prefix=np.full((rows, 2), 2, np.int32),
    mask_input=np.ones((rows, 2), bool),
    suffix=suffix,
    mask_loss=(suffix > 0).astype(np.float32),
    source=(np.arange(rows) % 4 == 3).astype(np.int32),
  )


def hide(rows, plan=0, fraction=0.3, seed=0, step=0):
  step = jnp.int32(step)
  batch = make_batch(rows, plan)
  return np.array(hidden_tokens(batch, TOKENIZERS, fraction, seed, step))


@pytest.mark.parametrize("plan", [0, PLAN])
def test_tokens_of_actions_alone_are_hidden_at_the_rate(plan):
  hidden = hide(400, plan)
  robot = make_batch(400).source == 0
  assert not hidden[~robot].any()
  action = hidden[robot][:, plan : plan + 8]
  assert hidden.sum() == action.sum()  # neither plan, eos nor padding
  np.testing.assert_allclose(action.mean(0), 0.3, atol=0.1)
  assert action.mean() == pytest.approx(0.3, abs=0.03)


def test_seed_step_and_row_alone_say_what_is_hidden():
  hidden = hide(64)
  np.testing.assert_array_equal(hidden, hide(64))
  np.testing.assert_array_equal(hidden[:16], hide(16))
  assert (hidden != hide(64, step=1)).any()
  assert (hidden != hide(64, seed=1)).any()
  assert hidden_tokens(make_batch(4), TOKENIZERS, 0.0, 0, jnp.int32(0)) is None


def test_a_hidden_token_is_neither_read_nor_learnt():
  model = variants.VLMConfig(
    variants.SiglipConfig(8, 1, 8, 1, patch_size=8, image_size=8),
    variants.GemmaConfig(8, 1, 8, 1, 1, 8, vocab_size=304),
  )
  config = optimizer.OptimizerConfig(1e-3, 2)
  trainer = Trainer(
    model=model,
    optimizer=optimizer.make_optimizer(config, 3),
    augmentation=Augmentation(),
    action_tokenizers=TOKENIZERS,
    seed=0,
    mesh=sharding.make_mesh({}, jax.devices()[:1]),
    masked_fraction=0.4,
  )
  step, start = trainer.compile_step(), trainer.init_state()

  def measure(batch):
    _, metrics = step(jax.tree.map(jnp.copy, start), batch)
    return jax.device_get(metrics)

  batch, hidden = make_batch(8), hide(8, fraction=0.4)
  shown = (batch.suffix >= 40) & ~hidden & (batch.source == 0)[:, None]
  plain = measure(batch)
  changed = {}
  for name, where in (("hidden", hidden), ("shown", shown)):
    assert where.any()
    suffix = np.where(where, 81 - batch.suffix, batch.suffix)  # 40 <-> 41
    changed[name] = measure(batch._replace(suffix=suffix))
  for name in ("loss", "gradient_norm"):
    np.testing.assert_array_equal(changed["hidden"][name], plain[name])
    assert (changed["shown"][name] != plain[name]).any()
  # What is reported tells of all of an action.
  assert (changed["hidden"]["l1/0"] != plain["l1/0"]).any()

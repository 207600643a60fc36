"""The step: metrics by hand, the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax import optimizer, sharding
from rt2_jax.action_tokens import RareTokens
from rt2_jax.actions import RT2, ActionTokenizer
from rt2_jax.augment import Augmentation
from rt2_jax.batch import Batch
from rt2_jax.models import variants
from rt2_jax.train_state import Trainer, batch_metrics

TOKENIZER = ActionTokenizer(RT2, RareTokens(tuple(range(40, 296))))
OTHER = ActionTokenizer(
  RT2.with_bounds({"dx": (-0.5, 0.5)}), RareTokens(tuple(range(40, 296)))
)
VOCAB = 304


def make_batch(seed=0, rows=8) -> Batch:
  rng = np.random.default_rng(seed)
  sizes = np.array(TOKENIZER.sizes)
  suffix = np.zeros((rows, 9), np.int32)
  suffix[:, :8] = 40 + rng.integers(0, sizes, (rows, 8))
  suffix[:, 8] = 1
  return Batch(
    image=rng.integers(0, 256, (rows, 1, 48, 64, 3), np.uint8),
    image_size=np.tile(np.array([[48, 64]], np.int32), (rows, 1)),
    prefix=rng.integers(2, VOCAB, (rows, 6)).astype(np.int32),
    mask_input=np.arange(6) >= rng.integers(0, 4, (rows, 1)),
    suffix=suffix,
    mask_loss=np.ones((rows, 9), np.float32),
    source=rng.integers(0, 2, rows).astype(np.int32),
  )


def make_trainer(**mesh) -> Trainer:
  config = optimizer.OptimizerConfig(1e-3, 2, weight_decay=0.1)
  return Trainer(
    model=variants.vlm(
      "tiny/16", "gemma_tiny", image_size=32, vocab_size=VOCAB
    ),
    optimizer=optimizer.make_optimizer(config, 10),
    augmentation=Augmentation(0.1, 0.1, 0.1, 0.1),
    tokenizers=(TOKENIZER, OTHER),
    seed=0,
    mesh=sharding.make_mesh(mesh),
  )


def run(trainer: Trainer, steps=3):
  state, step = trainer.init_state(), trainer.compile_step()
  losses = []
  for i in range(steps):
    batch = sharding.to_devices(make_batch(i), trainer.mesh)
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"].sum()))
  return state, losses, metrics


@pytest.fixture(scope="module")
def replicated():
  return run(make_trainer(data=8, fsdp=1, model=1))


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (4, 1, 2)])
def test_every_mesh_trains_alike(replicated, mesh):
  shape = dict(zip(sharding.MESH_AXES, mesh, strict=True))
  state, losses, _ = run(make_trainer(**shape))
  np.testing.assert_allclose(losses, replicated[1], rtol=1e-5)
  kernel = state.params["llm"]["layers"]["mlp"]["linear"]
  assert kernel.sharding.spec[1:] == ("model", "fsdp")
  moment = jax.tree.leaves(
    state.opt_state, is_leaf=lambda x: isinstance(x, dict)
  )
  placed = [
    m["llm"]["layers"]["mlp"]["linear"].sharding
    for m in moment
    if isinstance(m, dict)
  ]
  assert placed and all(s == kernel.sharding for s in placed)


def test_the_loss_goes_down():
  trainer = make_trainer(data=8, fsdp=1, model=1)
  state, step = trainer.init_state(), trainer.compile_step()
  batch = sharding.to_devices(make_batch(), trainer.mesh)
  losses = []
  for _ in range(8):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"].sum()))
  assert losses[-1] < 0.8 * losses[0]
  assert int(state.step) == 8


def test_metrics_by_hand():
  batch = make_batch(rows=4)._replace(source=np.array([0, 1, 1, 1], np.int32))
  predicted = np.array(batch.suffix)
  predicted[0, 0] = 81 - predicted[0, 0]  # terminate: 40 <-> 41
  predicted[1, 1] += 1 if predicted[1, 1] < 295 else -1  # dx: next bin
  predicted[3, 8] = 7  # eos is no dimension
  logits = 9.0 * jax.nn.one_hot(predicted, VOCAB)
  loss = jnp.arange(4.0)
  metrics = batch_metrics(loss, logits, batch, (TOKENIZER, OTHER))
  np.testing.assert_array_equal(metrics["examples"], [1, 3])
  np.testing.assert_array_equal(metrics["loss"], [0, 6])
  np.testing.assert_array_equal(metrics["correct/0"], [0] + [1] * 7)
  np.testing.assert_array_equal(metrics["correct/1"], [3, 2] + [3] * 6)
  np.testing.assert_allclose(metrics["l1/0"], [1] + [0] * 7, atol=1e-6)
  # One bin of ±0.5 m.
  np.testing.assert_allclose(metrics["l1/1"], [0, 1 / 256] + [0] * 6, atol=1e-6)


def test_a_word_that_is_no_action_counts_as_wrong_but_has_a_distance():
  batch = make_batch(rows=1)._replace(source=np.array([0], np.int32))
  logits = np.zeros((1, 9, VOCAB), np.float32)
  logits[..., 5] = 9.0  # not an action token
  logits[0, np.arange(8), batch.suffix[0, :8]] = 1.0  # best valid one
  metrics = batch_metrics(
    jnp.zeros(1), jnp.asarray(logits), batch, (TOKENIZER, OTHER)
  )
  np.testing.assert_array_equal(metrics["correct/0"], np.zeros(8))
  np.testing.assert_allclose(metrics["l1/0"], np.zeros(8), atol=1e-6)

"""The step: metrics by hand, the same on every mesh and in every part."""

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
from rt2_jax.models import variants
from rt2_jax.train_state import Trainer

TOKENIZER = ActionTokenizer(RT2, RareTokens(tuple(range(40, 296))))
OTHER = ActionTokenizer(
  RT2.with_bounds({"dx": (-0.5, 0.5)}), RareTokens(tuple(range(40, 296)))
)
VOCAB = 304
# Heads and widths divide by eight, so that every axis may take all devices.
MODEL = variants.VLMConfig(
  variants.SiglipConfig(64, 2, 128, 8, patch_size=16, image_size=32),
  variants.GemmaConfig(64, 2, 128, 8, 1, 16, vocab_size=VOCAB),
)


def make_batch(seed=0, rows=8) -> Batch:
  rng = np.random.default_rng(seed)
  sizes = np.array(TOKENIZER.sizes)
  suffix = np.zeros((rows, 9), np.int32)
  suffix[:, :8] = 40 + rng.integers(0, sizes, (rows, 8))
  suffix[:, 8] = 1
  return Batch(
    image=rng.integers(0, 256, (rows, 1, 48, 64, 3), np.uint8),
    image_size=np.tile(np.array([[[48, 64]]], np.int32), (rows, 1, 1)),
    prefix=rng.integers(2, VOCAB, (rows, 6)).astype(np.int32),
    mask_input=np.arange(6) >= rng.integers(0, 4, (rows, 1)),
    suffix=suffix,
    mask_loss=np.ones((rows, 9), np.float32),
    source=rng.integers(0, 2, rows).astype(np.int32),
  )


def make_trainer(mesh: dict[str, int], **fields) -> Trainer:
  config = optimizer.OptimizerConfig(1e-3, 2, weight_decay=0.1)
  parts = {
    "model": MODEL,
    "optimizer": optimizer.make_optimizer(config, 30),
    "augmentation": Augmentation(0.1, 0.1, 0.1, 0.1),
    "action_tokenizers": (TOKENIZER, OTHER),
    "seed": 0,
    "mesh": sharding.make_mesh(mesh),
  }
  return Trainer(**parts | fields)


def run(trainer: Trainer, steps=20):
  state, step = trainer.init_state(), trainer.compile_step()
  losses = []
  for i in range(steps):
    batch = sharding.same_rows_to_devices(make_batch(i, rows=32), trainer.mesh)
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"].sum()))
  return state, losses, metrics


@pytest.fixture(scope="module")
def replicated():
  return run(make_trainer({"data": 8}))


@pytest.mark.parametrize(
  "mesh",
  [
    {"fsdp": 8},
    {"data": 2, "fsdp": 2, "model": 2},
    {"slice": 2, "fsdp": 2, "model": 2},
    {"model": 8},
  ],
  ids=str,
)
def test_every_mesh_trains_alike(replicated, mesh):
  state, losses, _ = run(make_trainer(mesh))
  np.testing.assert_allclose(losses, replicated[1], rtol=1e-5)
  kernel = state.params["llm"]["layers"]["mlp"]["linear"]
  assert kernel.sharding.spec[1:] == ("model", "fsdp")
  moments = [
    moment["llm"]["layers"]["mlp"]["linear"].sharding
    for moment in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: isinstance(x, dict)
    )
    if isinstance(moment, dict)
  ]
  assert len(moments) == 2
  assert all(s == kernel.sharding for s in moments)


def test_naming_patches_teaches_the_encoder_and_the_words_alone():
  config = optimizer.OptimizerConfig(1e-2, 2)
  trainer = make_trainer(
    {"data": 8},
    objective="patches",
    optimizer=optimizer.make_optimizer(config, 60),
    augmentation=Augmentation(),
    action_tokenizers=(None,),
  )
  batch = make_batch(rows=8)  # one picture's four patches have four names
  batch = sharding.same_rows_to_devices(
    batch._replace(source=0 * batch.source), trainer.mesh
  )
  start, step = trainer.init_state(), trainer.compile_step()
  state = jax.tree.map(jnp.copy, start)
  losses = []
  for _ in range(60):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"][0]) / 8)
  assert losses[0] > 4 and losses[-1] < 0.5  # by heart
  before, after = start.params, state.params
  layers = (before["llm"]["layers"], after["llm"]["layers"])
  jax.tree.map(np.testing.assert_array_equal, *layers)
  assert (
    before["img"]["head"]["kernel"] != after["img"]["head"]["kernel"]
  ).any()


@pytest.mark.parametrize("microbatches", [2, 4])
def test_a_batch_in_parts_trains_alike(replicated, microbatches):
  trainer = make_trainer({"data": 4, "fsdp": 2}, microbatches=microbatches)
  _, losses, metrics = run(trainer)
  np.testing.assert_allclose(losses, replicated[1], rtol=1e-5)
  for name, expected in replicated[2].items():
    np.testing.assert_allclose(metrics[name], expected, rtol=2e-4, atol=1e-4)


def test_frozen_parameters_stay_and_have_no_state():
  trainer = make_trainer({"data": 8}, frozen=("img/", "input_embedding$"))
  before = jax.device_get(trainer.init_state().params)
  state, losses, _ = run(trainer)
  after = jax.device_get(state.params)
  jax.tree.map(np.testing.assert_array_equal, before["img"], after["img"])
  embedder = "llm", "embedder", "input_embedding"
  np.testing.assert_array_equal(*(leaf(t, embedder) for t in (before, after)))
  head = "llm", "layers", "mlp", "linear"
  assert np.any(leaf(before, head) != leaf(after, head))
  assert losses[-1] < losses[0]
  names = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
  ]
  assert not any("img" in n or "input_embedding" in n for n in names)


def leaf(tree, keys):
  for key in keys:
    tree = tree[key]
  return tree


def test_a_frozen_pattern_that_matches_nothing_is_an_error():
  trainer = make_trainer({"data": 8}, frozen=("vision/",))
  with pytest.raises(
    ValueError,
    match="got config.optimizer.frozen 'vision/', which matches no parameter",
  ):
    trainer.abstract_state()


def test_the_mean_of_the_parameters_follows_them():
  decay = 0.5
  trainer = make_trainer({"fsdp": 8}, ema_decay=decay)
  state, step = trainer.init_state(), trainer.compile_step()
  mean = jax.device_get(state.params)
  for i in range(3):
    batch = sharding.same_rows_to_devices(make_batch(i), trainer.mesh)
    state, _ = step(state, batch)
    mean = jax.tree.map(
      lambda m, p: decay * m + (1 - decay) * p,
      mean,
      jax.device_get(state.params),
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, mean
  )


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_every_optimizer_trains_on_a_mesh(name):
  config = optimizer.OptimizerConfig(
    3e-2 if name == "adafactor" else 1e-3, 2, name=name
  )
  trainer = make_trainer(
    {"slice": 2, "fsdp": 4}, optimizer=optimizer.make_optimizer(config, 30)
  )
  _, losses, _ = run(trainer)
  assert losses[-1] < 0.9 * losses[0]


def test_the_loss_goes_down(replicated):
  state, losses, _ = replicated
  assert losses[-1] < 0.9 * losses[0]
  assert int(state.step) == len(losses)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_bfloat16_parameters_train_as_well_as_float32(name):
  """Updates of a learning rate that rounding to nearest would lose."""

  def last_loss(dtype):
    config = optimizer.OptimizerConfig(
      1e-2 if name == "adafactor" else 3e-4,
      2,
      name=name,
      moment_dtype=dtype,
      param_dtype=dtype,
    )
    trainer = make_trainer(
      {"data": 8},
      optimizer=optimizer.make_optimizer(config, 30),
      param_dtype=dtype,
    )
    state, losses, _ = run(trainer)
    linear = state.params["llm"]["layers"]["mlp"]["linear"]
    assert linear.dtype == dtype
    assert state.params["llm"]["final_norm"]["scale"].dtype == "float32"
    return losses[0] - losses[-1]

  exact, rounded = last_loss("float32"), last_loss("bfloat16")
  assert exact > 10 and abs(rounded - exact) < 0.02 * exact


def test_a_batch_in_parts_sums_its_gradients_in_float32():
  whole, parts = (
    run(
      make_trainer({"data": 8}, param_dtype="bfloat16", microbatches=n), steps=5
    )
    for n in (1, 4)
  )
  np.testing.assert_allclose(whole[1], parts[1], rtol=1e-3)

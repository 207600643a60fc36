"""What a checkpoint keeps, and refuses."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rt2_jax import checkpoint
from rt2_jax.checkpoint import Checkpoints

TOKENIZER = b"a tokenizer's bytes"
META = {"tokenizer_sha256": hashlib.sha256(TOKENIZER).hexdigest(), "x": [1, 2]}
PARAMS = {"llm": {"w": jnp.arange(6.0).reshape(2, 3)}}
OPT_STATE = (jnp.zeros((), jnp.int32), {"llm": {"w": jnp.ones((2, 3))}})


def abstract(tree):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return checkpoint.abstract(tree, jax.tree.map(lambda _: device, tree))


@pytest.fixture
def folder(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
  for step in (10, 20, 30):
    checkpoints.save(step, PARAMS, OPT_STATE, META, TOKENIZER)
  checkpoints.close()
  return tmp_path


def test_everything_comes_back(folder):
  checkpoints = Checkpoints.open_run(folder)
  meta, tokenizer = checkpoints.restore_meta()
  assert meta == META and tokenizer == TOKENIZER
  step, params, opt_state = checkpoints.restore_state(
    abstract(PARAMS), abstract(OPT_STATE)
  )
  assert step == 30
  for got, kept in [(params, PARAMS), (opt_state, OPT_STATE)]:
    jax.tree.map(np.testing.assert_array_equal, got, kept)


def test_a_checkpoint_to_act_from(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
  checkpoints.save(10, params, None, META, TOKENIZER)
  checkpoints.wait()
  assert not checkpoints.has_optimizer()
  stored = checkpoints.stored_params()
  assert stored["llm"]["w"].dtype == jnp.bfloat16
  read = checkpoints.restore_params(stored)
  jax.tree.map(np.testing.assert_array_equal, read, params)
  assert read["llm"]["w"].dtype == jnp.bfloat16
  with pytest.raises(ValueError, match="without optimizer state, which is to "):
    checkpoints.restore_state(abstract(PARAMS), abstract(OPT_STATE))


def test_the_newest_ones_are_kept(folder):
  checkpoints = Checkpoints.open_run(folder / "checkpoints")
  checkpoints.restore_meta(20)
  with pytest.raises(ValueError, match=r"got checkpoint step 10 .*\[20, 30\]"):
    checkpoints.restore_meta(10)


def test_a_folder_without_checkpoints(tmp_path):
  with pytest.raises(ValueError, match=r"nowhere', which does not exist; pass"):
    Checkpoints.open_run(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="none: there is no checkpoint"):
    Checkpoints.open_run(tmp_path).restore_meta()


def test_a_damaged_tokenizer_is_noticed(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, PARAMS, OPT_STATE, META, b"another tokenizer")
  checkpoints.wait()
  with pytest.raises(ValueError, match="the checkpoint is damaged"):
    checkpoints.restore_meta()


def test_params_alone_on_another_sharding(folder):
  mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  wanted = checkpoint.abstract(PARAMS, {"llm": {"w": split}})
  params = Checkpoints.open_run(folder).restore_params(wanted)
  assert params["llm"]["w"].sharding == split
  np.testing.assert_array_equal(params["llm"]["w"], PARAMS["llm"]["w"])

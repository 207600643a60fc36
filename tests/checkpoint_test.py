"""What a checkpoint keeps, and refuses."""

import hashlib
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rt2_jax import orbax_manager, sharding, storage
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.errors import UserError
from rt2_jax.saved_step import Damaged

TOKENIZER = b"a tokenizer's bytes"
META = {"tokenizer_sha256": hashlib.sha256(TOKENIZER).hexdigest(), "x": [1, 2]}
PARAMS = {"llm": {"w": jnp.arange(6.0).reshape(2, 3)}}
OPT_STATE = (jnp.zeros((), jnp.int32), {"llm": {"w": jnp.ones((2, 3))}})


def abstract(tree):
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return sharding.abstract(tree, jax.tree.map(lambda _: device, tree))


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
  params, opt_state, window = checkpoints.restore_state(
    abstract(PARAMS), abstract(OPT_STATE)
  )
  assert window == {}
  assert checkpoints.latest_step() == 30
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
  with pytest.raises(ValueError, match="without optimizer state, which is inf"):
    checkpoints.restore_state(abstract(PARAMS), abstract(OPT_STATE))


def test_the_newest_ones_are_kept(folder):
  checkpoints = Checkpoints.open_run(folder / "checkpoints")
  checkpoints.restore_meta(20)
  with pytest.raises(ValueError, match=r"got checkpoint step 10 .*\[20, 30\]"):
    checkpoints.restore_meta(10)


@pytest.mark.parametrize("name", ["040", "copy_40", "\N{SUPERSCRIPT TWO}"])
def test_a_folder_beside_them_is_no_checkpoint(folder, name):
  beside = folder / "checkpoints" / name
  shutil.copytree(folder / "checkpoints/30", beside)
  with Checkpoints(folder / "checkpoints", keep=2) as checkpoints:
    assert checkpoints.steps() == [20, 30]
    checkpoints.save(50, PARAMS, OPT_STATE, META, TOKENIZER)
  assert checkpoints.steps() == [30, 50] and beside.is_dir()


def test_a_folder_without_checkpoints(tmp_path):
  with pytest.raises(ValueError, match=r"nowhere', which does not exist; pass"):
    Checkpoints.open_run(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="none: there is no checkpoint"):
    Checkpoints.open_run(tmp_path).restore_meta()


def test_a_damaged_tokenizer_is_noticed(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, PARAMS, OPT_STATE, META, b"another tokenizer")
  checkpoints.wait()
  with pytest.raises(ValueError, match="which is damaged"):
    checkpoints.restore_meta()


def test_params_alone_on_another_sharding(folder):
  mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
  wanted = sharding.abstract(PARAMS, {"llm": {"w": split}})
  params = Checkpoints.open_run(folder).restore_params(wanted)
  assert params["llm"]["w"].sharding == split
  np.testing.assert_array_equal(params["llm"]["w"], PARAMS["llm"]["w"])


def old_checkpoint(folder, step, params, opt_state, meta, model=TOKENIZER):
  """As it was written before there were checksums."""
  arrays, values = ocp.args.StandardSave, ocp.args.JsonSave
  tokenizer = {"model": np.frombuffer(model, np.uint8)}
  with ocp.CheckpointManager(folder / "checkpoints") as manager:
    items = {"params": arrays(params), "opt_state": arrays(opt_state)}
    items |= {"progress": values({"step": step}), "meta": values(meta)}
    items["tokenizer"] = arrays(tokenizer)
    manager.save(step, args=ocp.args.Composite(**items), force=True)


def test_an_old_checkpoint_without_checksums_is_read(tmp_path, caplog):
  old_checkpoint(tmp_path, 7, PARAMS, OPT_STATE, META)
  checkpoints = Checkpoints.open_run(tmp_path)
  assert checkpoints.restore_meta()[0] == META
  params, *_ = checkpoints.restore_state(abstract(PARAMS), abstract(OPT_STATE))
  assert "nothing to compare" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
  broken = {"llm": {"w": jnp.full((2, 3), jnp.inf)}}
  old_checkpoint(tmp_path, 8, broken, OPT_STATE, META)
  with pytest.raises(Damaged, match=r"params llm/w is not finite.*--step=7"):
    checkpoints.restore_params(abstract(PARAMS))


def test_what_is_not_finite_is_not_saved(folder):
  checkpoints = Checkpoints(folder / "checkpoints", keep=1)
  for params, opt_state in (
    ({"llm": {"w": jnp.full((2, 3), jnp.nan)}}, OPT_STATE),
    (PARAMS, (OPT_STATE[0], {"llm": {"w": jnp.full((2, 3), -jnp.inf)}})),
  ):
    with pytest.raises(UserError, match="step 40 .*llm/w.* up to step 30"):
      checkpoints.save(40, params, opt_state, META, TOKENIZER)
  checkpoints.close()
  assert checkpoints.steps() == [20, 30]  # and nothing was deleted


@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)
def test_a_disk_that_takes_no_more_is_named(folder):
  """A limit of the system stands in for a full disk."""
  checkpoints = Checkpoints(folder / "checkpoints", keep=1)
  params = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    with pytest.raises(
      UserError, match=r"checkpoints, which .*: File too large; .* step 30"
    ):
      checkpoints.save(40, params, OPT_STATE, META, TOKENIZER)
      checkpoints.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)
  assert checkpoints.steps() == [20, 30]


def test_step_0_is_not_the_newest(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    for step in (0, 1):
      params = {"w": jnp.full(3, float(step))}
      checkpoints.save(step, params, OPT_STATE, META, TOKENIZER)
  params = checkpoints.restore_params(abstract(params), 0)
  np.testing.assert_array_equal(params["w"], np.zeros(3))
  checkpoints.set_aside(0)
  with pytest.raises(UserError, match=r"got checkpoint step 0 in .*\[1\]"):
    checkpoints.restore_meta(0)


def test_the_best_stays_beside_the_newest(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    for step in (1, 2, 3, 4):
      checkpoints.best = 2 if step > 1 else None
      checkpoints.save(step, PARAMS, OPT_STATE, META, TOKENIZER)
  assert checkpoints.steps() == [2, 4]


def test_bfloat16_parameters_are_compared_too(folder):
  """A policy reads float32 as bfloat16; small bits are rounded away."""
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  params = Checkpoints.open_run(folder).restore_params(abstract(half))
  jax.tree.map(np.testing.assert_array_equal, params, half)
  change_a_number(folder / "checkpoints/30")
  with pytest.raises(Damaged, match="params llm/w has another checksum"):
    Checkpoints.open_run(folder).restore_params(abstract(half))


def change_a_number(step_folder):
  """Another array under the old checksums, well-formed for Orbax."""
  other = Checkpoints(step_folder.parent.parent / "other")
  params = {"llm": {"w": PARAMS["llm"]["w"].at[1, 1].add(1.0)}}
  other.save(30, params, OPT_STATE, META, TOKENIZER)
  other.close()
  shutil.rmtree(step_folder / "params")
  shutil.copytree(other.step_folder(30) / "params", step_folder / "params")


@pytest.mark.parametrize("name", ["rate=[1e-4]", "a*b", "why?", "back\\slash"])
def test_folders_that_nothing_can_be_kept_in_are_refused(tmp_path, name):
  checkpoints = Checkpoints(tmp_path / name / "checkpoints")
  with pytest.raises(UserError, match="expected a path without .*lost"):
    checkpoints.save(1, PARAMS, None, META, TOKENIZER)
  with pytest.raises(UserError, match="expected a path without"), checkpoints:
    pass
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["50%, é #1", "a b+c=d"])
def test_other_odd_folders_are_fine(folder, name):
  place = folder.rename(folder.with_name(name))
  with Checkpoints(place / "checkpoints") as checkpoints:
    checkpoints.save(40, PARAMS, None, META, TOKENIZER)
  found = checkpoints.restore_params(abstract(PARAMS))
  np.testing.assert_array_equal(found["llm"]["w"], PARAMS["llm"]["w"])


def test_a_bucket_takes_no_hash_either():
  with pytest.raises(UserError, match="got .*/run#1/.* without #"):
    orbax_manager.check_name(storage.Url("gs://bucket/run#1/checkpoints"))


def damages(data: bytes, rng: np.random.Generator):
  """None for a file that is gone; else its content."""
  flipped = bytearray(data)
  flipped[rng.integers(len(data))] ^= 1 << rng.integers(8)
  return None, data[: len(data) // 2], bytes(len(data)), bytes(flipped)


@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)  # reads that Orbax gives up
def test_damage_is_noticed_or_harmless(tmp_path):
  """Every file of a checkpoint: gone, cut, zeros, or one bit flipped."""
  random = jax.random.normal(jax.random.key(0), (64, 64))
  params = {"llm": {"w": random}}
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    for step in (10, 20):
      checkpoints.save(step, params, params, META, TOKENIZER)
  newest = checkpoints.step_folder(20)
  rng = np.random.default_rng(0)
  noticed = set()
  for path in sorted(p for p in newest.rglob("*") if p.is_file()):
    data = path.read_bytes()
    for changed in damages(data, rng):
      path.unlink()
      if changed is not None:
        path.write_bytes(changed)
      try:
        meta, tokenizer = checkpoints.restore_meta(20)
        state = checkpoints.restore_state(abstract(params), abstract(params))
      except Damaged as error:
        assert "checkpoints/20, which is damaged" in str(error)
        assert "[10]: pass --step=10" in str(error)
        noticed.add(path.relative_to(newest).parts[0])
      else:
        assert (meta, tokenizer) == (META, TOKENIZER), path
        np.testing.assert_array_equal(state.params["llm"]["w"], random)
        np.testing.assert_array_equal(state.opt_state["llm"]["w"], random)
      path.write_bytes(data)
  assert noticed >= {"params", "opt_state", "meta", "progress", "tokenizer"}

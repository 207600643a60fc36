"""The life of a run: it goes on after damage, and stops before it does any."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from configs import bridge_debug
from rt2_jax import optimizer, sharding, train_data, training
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.errors import START_AGAIN, UserError
from rt2_jax.policy import Policy
from rt2_jax.train_config import TrainConfig
from tests import tiny_datasets
from tests.checkpoint_test import old_checkpoint
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("one_device")

NUM_STEPS = 12


def make_fields(folder) -> dict:
  """A small model that logs every third step and saves every second."""
  fields = bridge_debug.get_config().to_dict()
  fields["tokenizer_file"] = str(ROOT / "data/small_tokenizer.model")
  source = tiny_datasets.bridge_source(folder / "bridge" / "1.0.0")
  fields["sources"]["bridge"]["path"] = source.path
  model = {"img": "micro/16", "llm": "gemma_micro", "image_size": 32}
  fields["model"] |= model
  fields["mesh"] = {"data": 1}
  fields["optimizer"]["warmup_steps"] = 2
  fields |= {"batch_size": 4, "num_steps": NUM_STEPS, "keep_checkpoints": 3}
  return fields | {"log_every": 3, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_device):
  """A run to its end: its folder, fields and last state."""
  folder = tmp_path_factory.mktemp("life")
  fields = make_fields(folder)
  return folder, fields, training.train(fields, folder / "run")


@pytest.fixture
def run(whole, tmp_path):
  """A copy of it: workdir, fields, and the state that it ends with."""
  folder, fields, state = whole
  shutil.copytree(folder / "run", tmp_path / "run")
  return tmp_path / "run", fields, state


def scalars(workdir) -> dict[str, list[tuple[int, float]]]:
  log = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
  tags = log.Reload().Tags()["scalars"]
  return {t: [(e.step, e.value) for e in log.Scalars(t)] for t in tags}


def without_speed(scalars: dict) -> dict:
  return {
    tag: values
    for tag, values in scalars.items()
    if not tag.startswith("speed/") and tag != "train/examples_per_s"
  }


def flip_a_bit(checkpoint):
  """In the largest stored file of the parameters."""
  files = [p for p in (checkpoint / "params").rglob("*") if p.is_file()]
  path = max(files, key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def test_damaged_checkpoints_give_way_to_the_one_before(run, caplog):
  """Bit for bit, and nothing is lost or doubled in TensorBoard."""
  workdir, fields, state = run
  before = scalars(workdir)
  flip_a_bit(workdir / "checkpoints/12")
  shutil.rmtree(workdir / "checkpoints/10/opt_state")
  with pytest.raises(UserError, match=r"/12, which is damaged .* \[8, 10\]"):
    Policy.from_checkpoint(workdir)
  resumed = training.train(fields, workdir)
  jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)
  jax.tree.map(
    np.testing.assert_array_equal, resumed.opt_state, state.opt_state
  )
  aside = {p.name for p in (workdir / "damaged_checkpoints").iterdir()}
  assert aside == {"10", "12"}
  for step in (10, 12):
    assert f"checkpoints/{step}, which is damaged" in caplog.text
  after = scalars(workdir)
  assert without_speed(after) == without_speed(before)
  assert [step for step, _ in after["train/loss"]] == [3, 6, 9, 12]
  Policy.from_checkpoint(workdir)
  for step in (8, 10, 12):
    shutil.rmtree(workdir / f"checkpoints/{step}/params")
  with pytest.raises(UserError, match=r"no checkpoint that is whole among \[8"):
    training.train(fields, workdir)
  assert Checkpoints.open_run(workdir).steps() == [8, 10, 12]  # all still there


def test_the_rate_is_the_one_that_the_step_used(whole):
  folder, fields, _ = whole
  config = TrainConfig.from_dict(fields)
  rate = optimizer.learning_rate(config.optimizer, NUM_STEPS)
  logged = scalars(folder / "run")["train/learning_rate"]
  assert [step for step, _ in logged] == [3, 6, 9, 12]
  used = [rate(step) for step in (2, 5, 8, 11)]
  np.testing.assert_allclose([r for _, r in logged], used)


def test_other_data_behind_the_same_path_are_noticed(run, tmp_path):
  workdir, fields, _ = run
  fields["sources"]["bridge"]["path"], before = (
    str(tmp_path / "moved"),
    fields["sources"]["bridge"]["path"],
  )
  shutil.copytree(before, tmp_path / "moved")
  training.train(fields, workdir)  # the same data in another folder
  config = json.loads((workdir / "config.json").read_text())
  assert config["sources"]["bridge"]["path"] == str(tmp_path / "moved")
  for episodes in (
    [tiny_datasets.bridge_episode(seed) for seed in range(3)],
    [tiny_datasets.bridge_episode(seed) for seed in (0, 1, 2, 4)],
    [
      tiny_datasets.bridge_episode(seed, instruction="put carrot on plats")
      for seed in range(4)
    ],
  ):
    tiny_datasets.write(tmp_path / "moved", episodes)
    with pytest.raises(
      UserError, match=r"source 'bridge', expected the 20 with fingerprint"
    ):
      training.train(fields, workdir)
  fields["sources"]["bridge"]["path"] = before


def test_checkpoints_from_before_go_on(run, caplog):
  """Those that keep neither checksums nor fingerprints."""
  workdir, fields, state = run
  checkpoints = Checkpoints.open_run(workdir)
  meta, _ = checkpoints.restore_meta()
  del meta["data"]
  shutil.rmtree(workdir / "checkpoints")
  tokenizer = TrainConfig.from_dict(fields).tokenizer.model
  old_checkpoint(
    workdir, NUM_STEPS, state.params, state.opt_state, meta, tokenizer
  )
  resumed = training.train(fields, workdir)
  jax.tree.map(np.testing.assert_array_equal, resumed.params, state.params)
  assert caplog.text.count("nothing to compare") == 3


def test_a_run_that_diverges_stops_and_keeps_what_is_good(run):
  workdir, fields, state = run
  checkpoints = Checkpoints.open_run(workdir)
  meta, model = checkpoints.restore_meta()
  shutil.rmtree(workdir / "checkpoints")
  huge = jax.tree.map(lambda x: x * 1e25, state.params)  # finite
  with Checkpoints(workdir / "checkpoints") as checkpoints:
    checkpoints.save(6, huge, state.opt_state, meta, model)
  with pytest.raises(
    UserError, match=r"step 7: got loss .*(inf|nan).*checkpoint is step 6; low"
  ):
    training.train(fields | {"keep_checkpoints": 1}, workdir)
  assert checkpoints.steps() == [6]
  records = json.loads((workdir / "bad_step_7.json").read_text())
  assert [r["row"] for r in records] == [0, 1, 2, 3]
  assert all(r["source"] == "bridge" for r in records)
  assert all(", byte " in r["record"] for r in records)
  # As a run that went on would have left it.
  nan = jax.tree.map(lambda x: x * np.nan, state.params)
  old_checkpoint(workdir, 8, nan, state.opt_state, meta, model)
  with pytest.raises(UserError, match=r"/8, which is damaged .* not finite"):
    Policy.from_checkpoint(workdir)


def test_an_error_completes_the_checkpoint(run, monkeypatch):
  """While it is being written, and from whatever place it comes."""
  workdir, fields, _ = run
  for step in (10, 12):
    shutil.rmtree(workdir / f"checkpoints/{step}")
  on_devices = train_data.on_devices
  closed = []

  def breaking(*args):
    try:
      for step, batch in on_devices(*args):
        if step == 10:
          raise ZeroDivisionError
        yield step, batch
    finally:
      closed.append(True)

  monkeypatch.setattr(train_data, "on_devices", breaking)
  with pytest.raises(ZeroDivisionError) as caught:
    training.train(fields, workdir)
  assert caught.value.__context__ is None and closed
  assert Checkpoints.open_run(workdir).steps() == [8, 10]
  assert [step for step, _ in scalars(workdir)["train/loss"]] == [3, 6, 9]


def test_bad_steps_are_left_out(run, caplog):
  """With the records of their batches, and the state as it was."""
  workdir, fields, state = run
  shutil.rmtree(workdir / "checkpoints/12")
  bounds = {"gradient_norm": 1e-9, "max_skipped": 2}
  skipped = training.train(
    fields | {"log_every": 1, "divergence": bounds}, workdir
  )
  for count, step in ((1, 11), (2, 12)):
    assert f"step {step} is left out, the {count}. of at most 2" in caplog.text
  assert int(skipped.step) == NUM_STEPS
  abstract = sharding.abstract(
    state.params, jax.tree.map(lambda x: x.sharding, state.params)
  )
  checkpoints = Checkpoints.open_run(workdir)
  before = checkpoints.restore_params(abstract, 10)
  jax.tree.map(np.testing.assert_array_equal, skipped.params, before)


@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)
def test_a_full_disk_does_not_end_a_run(run, monkeypatch, caplog):
  """A limit of the system stands in for it, until the run has noticed.

  It is the background that writes, as late as it likes.
  """
  workdir, fields, state = run
  for step in (10, 12):
    shutil.rmtree(workdir / f"checkpoints/{step}")
  on_devices = train_data.on_devices
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def filling(*args):
    for step, batch in on_devices(*args):
      if step == 9:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
      yield step, batch

  give_up = Checkpoints.give_up

  def freed(checkpoints):
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    give_up(checkpoints)

  monkeypatch.setattr(train_data, "on_devices", filling)
  monkeypatch.setattr(Checkpoints, "give_up", freed)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    ended = training.train(fields | {"log_every": 1}, workdir)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)
  assert "File too large" in caplog.text and "tries again" in caplog.text
  jax.tree.map(np.testing.assert_array_equal, ended.params, state.params)
  checkpoints = Checkpoints.open_run(workdir)
  assert checkpoints.latest_step() == NUM_STEPS
  checkpoints.restore_params(checkpoints.stored_params())
  assert all(p.name.isdigit() for p in (workdir / "checkpoints").iterdir())


def test_a_run_may_be_made_longer(run, monkeypatch, caplog):
  workdir, fields, _ = run
  caplog.set_level("INFO", logger="rt2_jax")
  with pytest.raises(UserError, match="num_steps = 11, expected at least 12"):
    training.train(fields | {"num_steps": 11}, workdir)
  monkeypatch.setattr(train_data, "on_devices", lambda *args: (_ for _ in ()))
  training.train(fields | {"num_steps": 24}, workdir)
  assert "config.num_steps is 24, was 12" in caplog.text
  assert "from step 12 of 24" in caplog.text
  assert "the learning rate there is" in caplog.text
  assert json.loads((workdir / "config.json").read_text())["num_steps"] == 24


ON_ONE_DEVICE = """
import runpy, signal, sys
# A shell starts what runs in its background with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from rt2_jax.train_config import TrainConfig
make = TrainConfig.make_mesh
TrainConfig.make_mesh = lambda self, all: make(self, all[:1])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_ctrl_c_saves_the_step_and_shows_nothing_else(whole):
  folder, fields, state = whole
  overrides = {
    "tokenizer_file": fields["tokenizer_file"],
    "sources.bridge.path": fields["sources"]["bridge"]["path"],
    **{f"model.{k}": fields["model"][k] for k in ("img", "llm", "image_size")},
    "mesh.data": 1,
    "optimizer.warmup_steps": 2,
    "batch_size": 4,
    "num_steps": NUM_STEPS,
    "log_every": 1,
    "checkpoint_every": 100,
  }
  process = subprocess.Popen(
    [
      *(sys.executable, "-c", ON_ONE_DEVICE, "launch/train.py"),
      "--config=configs/bridge_debug.py",
      f"--workdir={folder / 'interrupted'}",
      *(f"--config.{name}={value}" for name, value in overrides.items()),
    ],
    cwd=ROOT,
    env=os.environ | {"PYTHONUNBUFFERED": "1"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  for line in process.stdout:
    if f"step 2/{NUM_STEPS}" in line:
      break
  process.send_signal(signal.SIGINT)
  rest, _ = process.communicate(timeout=100)
  assert process.returncode == START_AGAIN, rest
  assert "Traceback" not in rest and "Ctrl-C again" in rest
  checkpoints = Checkpoints.open_run(folder / "interrupted")
  (newest,) = checkpoints.steps()
  assert 2 <= newest < NUM_STEPS
  assert f"stopped on request after step {newest}" in rest.splitlines()[-1]
  unfinished = (folder / "interrupted/checkpoints").iterdir()
  assert all(path.name.isdigit() for path in unfinished)
  ended = training.train(fields, folder / "interrupted")
  jax.tree.map(np.testing.assert_array_equal, ended.params, state.params)

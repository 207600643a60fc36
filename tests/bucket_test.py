"""A run that lies in a bucket, on a real Google Cloud Storage server.

Data, tokenizer, statistics, kept index, workdir, weights and exports.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from configs import bridge_debug
from rt2_jax import local_copies, storage, training
from rt2_jax.benchmarks import saving
from rt2_jax.checkpoint import CannotWriteError, Checkpoints
from rt2_jax.input_pipeline import index
from rt2_jax.train_config import TrainConfig
from rt2_jax.weights import export, lora_base, pretrained
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint
from tests import tiny_datasets
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("one_device")

NUM_STEPS = 12
SAVED_EVERY = 6


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> pathlib.Path:
  """A folder that holds what a run reads."""
  folder = tmp_path_factory.mktemp("bucket") / "home"
  tiny_datasets.bridge_source(folder / "bridge/1.0.0")
  tokenizer = ROOT / "data/small_tokenizer.model"
  (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
  return folder


def make_fields(home) -> dict:
  """A small model whose every path lies in one place."""
  fields = bridge_debug.get_config().to_dict()
  fields["tokenizer_file"] = f"{home}/tokenizer.model"
  fields["sources"]["bridge"]["path"] = f"{home}/bridge/1.0.0"
  fields["loader"] = {"index_folder": f"{home}/index"}
  model = {"img": "micro/16", "llm": "gemma_micro", "image_size": 32}
  fields["model"] |= model
  fields["mesh"] = {"data": 1}
  fields["optimizer"]["warmup_steps"] = 2
  fields |= {"batch_size": 4, "num_steps": NUM_STEPS, "log_every": 1}
  return fields | {"checkpoint_every": SAVED_EVERY}


@pytest.fixture(scope="module")
def whole(local, one_device):
  """The last state of a run on this machine, all of whose paths are local."""
  return training.train(make_fields(local), local / "run")


@pytest.fixture(scope="module")
def remote(local, whole, bucket) -> storage.Url:
  """The same run in a bucket, up to its end."""
  home = bucket / "home"
  local_copies.publish(local / "bridge", home / "bridge")
  local_copies.publish(local / "tokenizer.model", home / "tokenizer.model")
  state = training.train(make_fields(home), f"{home}/run")
  assert_same(state, whole)
  return home


def assert_same(state, other):
  for items in ("params", "opt_state"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(state, items),
      getattr(other, items),
    )


def scalars(workdir: storage.Path) -> dict[str, list[tuple[int, float]]]:
  with local_copies.of(workdir / "tensorboard") as folder:
    log = event_accumulator.EventAccumulator(str(folder))
    tags = log.Reload().Tags()["scalars"]
    found = {t: [(e.step, e.value) for e in log.Scalars(t)] for t in tags}
  del found["train/examples_per_s"]
  return {t: v for t, v in found.items() if not t.startswith("speed/")}


def test_a_run_goes_on_in_a_bucket(remote, local, whole, monkeypatch):
  workdir = remote / "run"
  assert scalars(workdir) == scalars(local / "run")
  assert not (workdir / "lock").exists()
  storage.remove(workdir / f"checkpoints/{NUM_STEPS}")
  monkeypatch.setattr(index, "_build", None)  # the kept index is there
  fields = make_fields(remote)
  assert_same(training.train(fields, str(workdir)), whole)
  assert scalars(workdir) == scalars(local / "run")
  assert Checkpoints(workdir / "checkpoints").steps() == [
    SAVED_EVERY,
    NUM_STEPS,
  ]


def test_a_truncated_checkpoint_in_a_bucket_gives_way(remote, whole, caplog):
  workdir = remote / "run"
  objects = storage.file_system(workdir).find(
    f"{workdir}/checkpoints/{NUM_STEPS}/params", detail=True
  )
  largest = max(objects.values(), key=lambda each: each["size"])
  path = storage.locate(f"gs://{largest['name']}", "x")
  storage.write(path, path.read_bytes()[: largest["size"] // 2])
  assert_same(training.train(make_fields(remote), str(workdir)), whole)
  assert f"checkpoints/{NUM_STEPS}, which is damaged" in caplog.text
  assert (workdir / f"damaged_checkpoints/{NUM_STEPS}/params").is_dir()


def test_weights_are_those_of_a_run_in_a_bucket(remote, whole):
  config = TrainConfig.from_dict(make_fields(remote))
  shapes = jax.eval_shape(lambda: whole.params)
  placed = jax.tree.map(
    lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding),
    *(shapes, whole.params),
  )
  params = lora_base.read(f"{remote}/run", config.model, placed)
  jax.tree.map(np.testing.assert_array_equal, params, whole.params)


def run(*command: str) -> str:
  done = subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_a_run_in_a_bucket_is_evaluated(remote):
  run("launch/evaluate.py", f"--workdir={remote}/run", "--limit=4")
  metrics = json.loads((remote / "run/evaluation/bridge.json").read_text())
  assert metrics["step"] == NUM_STEPS
  assert 0 <= metrics["forced_accuracy/mean"] <= 1
  picture = (remote / "run/evaluation/bridge.png").read_bytes()
  assert picture.startswith(b"\x89PNG")


def test_weights_are_exported_to_a_bucket_and_read_by_ranges(
  remote, whole, monkeypatch
):
  path = remote / "exports/model.npz"
  with local_copies.made_for(path) as local:
    export.to_big_vision(whole.params, local)
  config = TrainConfig.from_dict(make_fields(remote)).model
  shardings = jax.tree.map(lambda x: x.sharding, whole.params)
  files, asked = storage.file_system(path), []
  cat_file = files.cat_file

  def counted(name, start=None, end=None):
    asked.append((start, end))
    return cat_file(name, start=start, end=end)

  monkeypatch.setattr(files, "cat_file", counted)
  read = pretrained.load(str(path), config, shardings)
  jax.tree.map(np.testing.assert_array_equal, read, whole.params)
  # A header twice; no array twice.
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params))
  large = sum(end - start for start, end in asked if end - start > 4096)
  assert large <= size
  assert sum(end - start for start, end in asked) < 1.2 * size


def test_checkpoints_are_averaged_from_and_to_a_bucket(remote, whole):
  del whole  # the run that is averaged
  steps = NUM_STEPS - SAVED_EVERY, NUM_STEPS
  flags = f"--workdir={remote}/run", f"--steps={steps[0]},{steps[1]}"
  output = remote / "averaged"
  run("launch/convert.py", "average", *flags, f"--output={output}")
  assert list(output.iterdir()) == [output / "checkpoints"]
  assert not (remote / "averaged.unproven").exists()
  averaged = StoredCheckpoint.open(output)
  assert averaged.step == NUM_STEPS and not averaged.has_optimizer
  first, last = (
    StoredCheckpoint.open(f"{remote}/run", step).read_params() for step in steps
  )
  jax.tree.map(
    lambda mean, *of: np.testing.assert_allclose(
      mean, np.mean(of, axis=0), rtol=1e-5, atol=1e-7
    ),
    averaged.read_params(),
    first,
    last,
  )


def test_saving_and_restoring_are_measured(remote, whole, tmp_path):
  config = TrainConfig.from_dict(make_fields(remote))
  state = saving.draw_state(config, 1e-4)
  for folder in (remote / "bench", tmp_path):
    row = saving.measure(state, str(folder), 1)
    assert 0.9e5 < row["bytes"] <= 1e5 and row["folder"] == str(folder)
    assert 0 < row["blocked_s"] <= row["save_s"]
    assert row["restore_s"] > 0
    assert not (folder / "checkpoint_benchmark").exists()


def test_a_bucket_that_takes_no_checkpoint_is_named(store):
  bucket, proxy = store
  folder = bucket / "refused/checkpoints"
  items = {"x": np.zeros(4, np.float32)}, None, {"tokenizer_sha256": ""}, b" "
  with (
    pytest.raises(CannotWriteError, match=f"got checkpoint folder {folder}, "),
    Checkpoints(folder) as checkpoints,
    proxy.refusing(403),
  ):
    checkpoints.save(1, *items)
    checkpoints.wait()

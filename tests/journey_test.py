"""The whole road, as a person walks it: train, kill, go on, evaluate, act."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from rt2_jax import sharding
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.errors import START_AGAIN
from rt2_jax.images import decode
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import init_params
from rt2_jax.policy import Policy
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint
from tests import gcs, tiny_datasets
from tests.conftest import ROOT

NUM_STEPS = 12
SAVED_EVERY = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("journey")
  tiny_datasets.bridge_source(folder / "bridge" / "1.0.0")
  return folder


def start(
  folder, workdir: str, num_devices: int = 8, flags: tuple[str, ...] = ()
) -> subprocess.Popen:
  """launch/train.py on fake devices in a slice's order, as from a shell."""
  overrides = {
    "sources.bridge.path": folder / "bridge" / "1.0.0",
    "model.img": "micro/16",
    "model.llm": "gemma_micro",
    "model.image_size": 32,
    "augmentation.crop": 0.1,
    "augmentation.contrast": 0.1,
    "optimizer.warmup_steps": 2,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.model": 2,
    "batch_size": 8,
    "num_steps": NUM_STEPS,
    "log_every": 1,
    "checkpoint_every": SAVED_EVERY,
  }
  command = [
    sys.executable,
    "tests/train_interleaved.py",
    "--config=configs/bridge_debug.py",
    f"--workdir={folder / workdir}",
    *(f"--config.{name}={value}" for name, value in overrides.items()),
    *flags,
  ]
  # The last of two flags is the one that counts.
  devices = f"--xla_force_host_platform_device_count={num_devices}"
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=os.environ
    | {
      "PYTHONUNBUFFERED": "1",
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
      # Processes that wait for each other must all compile, or none: gloo gives
      # a straggler 30 s.
      "JAX_ENABLE_COMPILATION_CACHE": str(num_devices == 8).lower(),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process: subprocess.Popen) -> str:
  out, _ = process.communicate(timeout=600)
  assert process.returncode == 0, out
  return out


def final_params(workdir, num_steps=NUM_STEPS):
  checkpoints = Checkpoints.open_run(workdir)
  meta, _ = checkpoints.restore_meta()
  assert checkpoints.latest_step() == num_steps
  model = VLMConfig.from_dict(meta["model"])
  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return checkpoints.restore_params(
    sharding.abstract(shapes, jax.tree.map(lambda _: one, shapes))
  )


@pytest.fixture(scope="module")
def whole(folder):
  """An uninterrupted run."""
  finish(start(folder, "whole"))
  return folder / "whole"


def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(folder, whole):
  victim = start(folder, "killed")
  # Any step after the second save has begun, for then the first is complete.
  last = random.randint(2 * SAVED_EVERY + 1, NUM_STEPS - 2)
  seen = []
  for line in victim.stdout:
    seen.append(line)
    if f"step {last}/{NUM_STEPS}" in line:
      break
  victim.send_signal(signal.SIGKILL)
  assert victim.wait(timeout=60) == -signal.SIGKILL, "".join(seen)
  out = finish(start(folder, "killed"))
  assert "from step 0 of" not in out, f"killed after step {last}\n{out}"
  jax.tree.map(
    np.testing.assert_array_equal,
    final_params(folder / "killed"),
    final_params(whole),
  )


def losses(workdir) -> list[float]:
  log = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
  return [e.value for e in log.Reload().Scalars("train/loss")]


def start_many(
  folder,
  workdir: str,
  count: int,
  flags: tuple[str, ...] = (),
  num_devices: int = 8,
  differing: tuple[str, ...] = (),
) -> list[subprocess.Popen]:
  """`count` processes that share some devices, gloo between them.

  All but the first have the flags `differing` as well.
  """
  port = gcs.free_port()
  return [
    start(
      folder,
      workdir,
      num_devices=num_devices // count,
      flags=(
        "--multihost",
        f"--coordinator=localhost:{port}",
        f"--num_processes={count}",
        f"--process_id={i}",
        *flags,
        *differing * bool(i),
      ),
    )
    for i in range(count)
  ]


def lose_last_checkpoint(workdir):
  shutil.rmtree(workdir / "checkpoints" / str(NUM_STEPS))


def assert_ends_like(workdir, whole):
  np.testing.assert_allclose(
    losses(workdir)[-SAVED_EVERY:], losses(whole)[-SAVED_EVERY:], rtol=1e-5
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    final_params(workdir),
    final_params(whole),
  )


@pytest.mark.slow
def test_four_processes_train_like_one_and_one_goes_on(folder, whole):
  out = [finish(p) for p in start_many(folder, "four", 4)]
  assert f"step {NUM_STEPS}/{NUM_STEPS}" in out[0]
  assert all(f"step {NUM_STEPS}" not in other for other in out[1:])
  np.testing.assert_allclose(losses(folder / "four"), losses(whole), rtol=1e-6)
  lose_last_checkpoint(folder / "four")
  out = finish(start(folder, "four"))
  assert f"from step {NUM_STEPS - SAVED_EVERY} of {NUM_STEPS}" in out
  assert_ends_like(folder / "four", whole)


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_has_saved(folder, whole):
  shutil.copytree(whole, folder / "two")
  lose_last_checkpoint(folder / "two")
  out = [finish(p) for p in start_many(folder, "two", 2)]
  assert f"from step {NUM_STEPS - SAVED_EVERY} of {NUM_STEPS}" in out[0]
  assert_ends_like(folder / "two", whole)


@pytest.mark.slow
def test_a_preemption_of_one_host_saves_one_step_on_all(folder):
  flags = ("--config.mesh.fsdp=1", "--config.mesh.model=1")
  first, second = start_many(folder, "preempted", 2, flags, num_devices=2)
  for line in first.stdout:
    if f"step 1/{NUM_STEPS}" in line:
      break
  second.send_signal(signal.SIGTERM)
  for process in (first, second):
    out, _ = process.communicate(timeout=100)
    assert process.returncode == START_AGAIN, out
    assert "Traceback" not in out
  checkpoints = Checkpoints.open_run(folder / "preempted")
  saved = checkpoints.latest_step()
  assert 1 < saved < NUM_STEPS and checkpoints.has_optimizer()
  checkpoints.restore_params(checkpoints.stored_params())


def test_processes_that_differ_are_named_before_the_first_step(folder):
  """Learning rate, seed and the length of a source, all at once."""
  tiny_datasets.bridge_source(folder / "fewer" / "1.0.0", num_episodes=3)
  other = (
    "--config.optimizer.learning_rate=0.002",
    "--config.seed=1",
    f"--config.sources.bridge.path={folder / 'fewer' / '1.0.0'}",
  )
  for process in start_many(folder, "differing", 2, differing=other):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert "Traceback" not in out
    for difference in (
      "config.optimizer.learning_rate is 0.001 on process 0, 0.002 on process ",
      "config.seed is 0 on process 0, 1 on process 1",
      "data.bridge.length is 20 on process 0, 15 on process 1",
    ):
      assert difference in out
  assert not (folder / "differing").exists()


def test_a_host_that_never_joins_is_named(folder):
  port = gcs.free_port()
  lonely = start(
    folder,
    "lonely",
    flags=(
      "--multihost",
      f"--coordinator=localhost:{port}",
      "--num_processes=3",
      "--process_id=0",
      "--timeout=2",
    ),
  )
  out, _ = lonely.communicate(timeout=120)
  assert lonely.returncode == 1
  assert "got 1 of 3 processes within 2 s, missing: process 1, 2" in out
  assert "Traceback" not in out


def test_evaluate_prints_a_table_and_draws(whole):
  done = subprocess.run(
    [sys.executable, "launch/evaluate.py", f"--workdir={whole}"],
    cwd=ROOT,
    # As a person starts it: JAX looks for devices itself.
    env={k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"},
    capture_output=True,
    text=True,
    check=True,
  )
  # RT-1's bounds are wide for these small motions, and that is said.
  assert not [
    x for x in done.stderr.splitlines() if "bounds do not fit" not in x
  ]
  assert "mean teacher-forced token accuracy" in done.stdout
  for name in ("terminate", "dx", "dyaw", "gripper"):
    assert f"\n{name}" in done.stdout
  metrics = json.loads((whole / "evaluation/bridge.json").read_text())
  assert 0 <= metrics["forced_accuracy/mean"] <= 1
  assert len(metrics["config_hash"]) == 16
  assert (whole / "evaluation/bridge.png").stat().st_size > 10_000


def test_a_policy_acts_from_the_checkpoint_alone(folder, whole):
  policy = Policy.from_checkpoint(whole)
  config = SourceConfig("bridge_dataset", str(folder / "bridge" / "1.0.0"))
  source = open_source(config, "train")
  seen = [source.storage.read(source.requests([i])[0]) for i in range(4)]
  images = np.stack([decode(*each) for each in seen])
  actions = policy(images, [source.instruction(i) for i in range(4)])
  assert actions.shape == (4, 8) and np.isfinite(actions).all()
  assert set(actions[:, 0]) <= {0.0, 1.0}


def test_a_run_without_web_data_is_asked_the_questions_of_another(
  folder, whole
):
  """So that forgetting can be measured after training on robots alone.

  The data may have moved since then.
  """
  records = [tiny_datasets.web_example(i, f"dog {i}") for i in range(4)]
  tiny_datasets.write(folder / "web", records, "vqa", "val")
  other = folder / "with_web"
  stored = StoredCheckpoint.open(whole)
  web = {"vqa": {"path": str(folder / "gone"), "eval_split": "val"}}
  config = stored.meta["config"] | {"web": web}
  checkpoints = Checkpoints(other / "checkpoints")
  params = {"none": np.zeros(1)}
  meta = stored.meta | {"config": config}
  checkpoints.save(1, params, params, meta, stored.tokenizer)
  checkpoints.close()
  command = [sys.executable, "launch/evaluate.py", f"--workdir={whole}"]
  subprocess.run(
    [
      *command,
      f"--web_of={other}",
      f"--paths=vqa={folder / 'web'}",
      "--limit=4",
    ],
    cwd=ROOT,
    check=True,
  )
  metrics = json.loads((whole / "evaluation/vqa.json").read_text())
  assert metrics["step"] == NUM_STEPS and 0 <= metrics["accuracy"] <= 1

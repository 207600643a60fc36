"""Real trainings through launch/pod.py, interrupted: make cluster-tests.

They run the committed code. Minutes on two cores.
"""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import tiny_datasets
from tests.clusters import slurm_cluster
from tests.conftest import QUICK_COMPILATION, ROOT
from tests.journey_test import final_params

NUM_STEPS = 60  # a job must not end before it is told to


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("rehearsal")
  tiny_datasets.bridge_source(folder / "bridge" / "1.0.0")
  return folder


def start(folder, name: str, *flags: str) -> subprocess.Popen:
  """`pod.py run` of a small training, with one CPU device in each process."""
  overrides = {
    "sources.bridge.path": folder / "bridge" / "1.0.0",
    "model.img": "micro/16",
    "model.llm": "gemma_micro",
    "model.image_size": 32,
    "optimizer.warmup_steps": 2,
    "mesh.data": -1,
    "batch_size": 8,
    "num_steps": NUM_STEPS,
    "log_every": 1,
    "checkpoint_every": 4,
  }
  return subprocess.Popen(
    [
      *(sys.executable, "launch/pod.py", "run", "--allow_dirty"),
      *(f"--folder={folder / 'pods'}", f"--name={name}"),
      "--config=configs/bridge_debug.py",
      f"--workdir={folder / name}",
      *(f"--config.{field}={value}" for field, value in overrides.items()),
      *flags,
    ],
    cwd=ROOT,
    env=os.environ
    | {
      "PYTHONUNBUFFERED": "1",
      "XLA_FLAGS": QUICK_COMPILATION,
      # Processes that wait for each other must all compile, or none.
      "JAX_ENABLE_COMPILATION_CACHE": "false",
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def until_step(run: subprocess.Popen, step: int) -> list[str]:
  """Reads the log until a step is over."""
  seen = []
  for line in run.stdout:
    seen.append(line)
    if f"step {step}/{NUM_STEPS}" in line:
      return seen
  raise AssertionError("".join(seen))


def finish(run: subprocess.Popen) -> str:
  out, _ = run.communicate(timeout=900)
  assert run.returncode == 0, out
  return out


@pytest.fixture(scope="module")
def whole(folder):
  """The parameters of two undisturbed processes."""
  run = start(folder, "whole", "--backend=local", "--num_processes=2")
  assert "whole: done" in finish(run)
  return final_params(folder / "whole", NUM_STEPS)


def assert_same(params, whole):
  jax.tree.map(np.testing.assert_array_equal, params, whole)


def test_four_hosts_on_this_machine(folder):
  """README's command."""
  run = start(folder, "four", "--backend=local", "--num_processes=4")
  out = finish(run)
  assert "on 4 devices" in out and "four: done" in out
  final_params(folder / "four", NUM_STEPS)


def test_a_killed_process_is_followed_by_a_restart(folder, whole):
  run = start(folder, "killed", "--backend=local", "--num_processes=2")
  until_step(run, 6)
  known = json.loads((folder / "pods/killed/run.json").read_text())
  os.kill(known["processes"][1][0], signal.SIGKILL)
  out = finish(run)
  assert "lost (killed: process 1 by signal 9)" in out
  assert "killed: done after 1 restarts" in out
  assert_same(final_params(folder / "killed", NUM_STEPS), whole)


def test_sigterm_saves_and_ends_the_run_which_goes_on_later(folder, whole):
  flags = ("--backend=local", "--num_processes=2")
  run = start(folder, "stopped", *flags)
  until_step(run, 6)
  run.send_signal(signal.SIGTERM)
  assert "stopped: stopped" in finish(run)
  saved = [p.name for p in (folder / "stopped/checkpoints").iterdir()]
  assert max(int(name) for name in saved if name.isdigit()) >= 6
  assert "stopped: done" in finish(start(folder, "stopped", *flags))
  assert_same(final_params(folder / "stopped", NUM_STEPS), whole)


def test_a_requeued_slurm_job_ends_with_the_same_parameters(
  folder, whole, tmp_path
):
  with slurm_cluster.running(tmp_path):
    run = start(folder, "slurm", "--backend=slurm", "--nodes=2")
    until_step(run, 6)
    job = (folder / "pods/slurm/job").read_text()
    slurm_cluster.slurm("scontrol", "requeue", job)
    out = finish(run)
  # It has saved what it had done when it was told to leave.
  (resumed,) = [line for line in out.splitlines() if "; from step" in line]
  assert int(resumed.split("from step ")[1].split()[0]) >= 6
  assert "slurm: done" in out
  assert_same(final_params(folder / "slurm", NUM_STEPS), whole)

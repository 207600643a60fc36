"""launch/pod.py, as a person starts it."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

CONFIG = "--config=configs/rt2_paligemma_3b.py:gs://bucket/data"
RUN = ("run", CONFIG, "--config.seed=3")
TPU = ("--zone=z", "--accelerator=v6e-256", "--dry_run", "--allow_dirty")


def pod(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "launch/pod.py", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_a_dry_run_shows_what_every_process_would_run(tmp_path):
  done = pod(
    *RUN,
    *("--backend=local", "--num_processes=2", "--dry_run", "--allow_dirty"),
    "--workdir=runs/x",
    f"--folder={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  ship, *processes = done.stdout.splitlines()
  assert ship.endswith(f"tar -x -C {tmp_path}/rt2-paligemma-3b/code")
  assert len(processes) == 2
  for n, line in enumerate(processes):
    _, program, *arguments = line.split()
    assert program == "launch/train.py"
    assert arguments[:3] == [*RUN[1:], f"--workdir={ROOT}/runs/x"]
    assert arguments[-2:] == ["--num_processes=2", f"--process_id={n}"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["rnu", "--backend=local"], "'rnu' for the command.*mean 'run'"),
    ([*RUN, "--backend=local", "--config.sed=1"], "'sed'.*mean 'seed'"),
    (
      [*RUN, "--backend=tpu_vm", "--runtime_version=v", "--workdir=w", *TPU],
      "--workdir='w', expected a bucket such as gs://",
    ),
  ],
)
def test_mistakes_are_named_before_anything_starts(arguments, message):
  done = pod(*arguments)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert re.search(message, done.stderr), done.stderr


def test_a_relative_path_that_the_config_states_is_refused(tmp_path):
  config = tmp_path / "arm.py"
  config.write_text(
    "import ml_collections\n\n\ndef get_config():\n"
    "  source = {'dataset': 'bridge', 'path': 'tests/../.git'}\n"
    "  return ml_collections.ConfigDict({'sources': {'arm': source}})\n"
  )
  run = ("run", f"--config={config}", "--workdir=runs/x", "--allow_dirty")
  done = pod(*run, "--backend=local", "--dry_run")
  assert done.returncode == 1 and "Traceback" not in done.stderr
  said = f"got --config.sources.arm.path=.*; write '{ROOT}/.git'"
  assert re.search(said, done.stderr), done.stderr

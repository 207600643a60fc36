"""launch/pod.py, as a person starts it."""

import re
import subprocess
import sys

import pytest

from rt2_jax.clusters.code import check_name
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


@pytest.mark.parametrize("page", ["README.md", "docs/pods.md"])
def test_the_runs_that_a_page_starts_have_names_that_are_taken(page):
  text = (ROOT / page).read_text()
  commands = re.findall(r"launch/pod\.py (?:[^\n]*\\\n)*[^\n]*", text)
  names = re.findall(r"--name=(\S+)", " ".join(commands))
  assert names and all(map(check_name, names))

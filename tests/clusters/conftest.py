"""A repository with a training that needs no JAX, as a job."""

import json
import pathlib
import shutil
import subprocess

import pytest

from rt2_jax.clusters.cluster import Job
from rt2_jax.clusters.code import committed

HERE = pathlib.Path(__file__).parent


def git(folder: pathlib.Path, *arguments: str):
  identity = ("-c", "user.name=x", "-c", "user.email=x@example.com")
  subprocess.run(
    ["git", "-C", folder, *identity, *arguments],
    check=True,
    capture_output=True,
  )


@pytest.fixture
def repository(tmp_path):
  folder = tmp_path / "repository"
  folder.mkdir()
  shutil.copy(HERE / "fake_training.py", folder / "train.py")
  git(folder, "init", "--quiet")
  git(folder, "add", ".")
  git(folder, "commit", "--quiet", "-m", "one")
  return folder


@pytest.fixture
def make_job(repository, tmp_path):
  """Makes a job whose starts end as a plan says, see fake_training.py."""

  def make(*plan: dict[str, str], max_restarts: int = 3) -> Job:
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    (workdir / "plan.json").write_text(json.dumps(plan))
    code, _ = committed(repository, allow_dirty=False)
    arguments = ["--config=x y.py", f"--workdir={workdir}"]
    return Job("run", code, "train.py", arguments, max_restarts)

  return make


def starts(job: Job, process: int | str) -> list[str]:
  """Arguments and folder of every start of a process."""
  workdir = job.arguments[-1].partition("=")[2]
  path = pathlib.Path(workdir, f"starts_{process}")
  return path.read_text().splitlines() if path.exists() else []

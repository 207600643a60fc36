"""The Slurm backend on a real Slurm cluster of two nodes."""

import dataclasses
import threading
import time

import pytest

from rt2_jax.clusters import restarts, slurm
from rt2_jax.clusters.commands import Commands
from rt2_jax.clusters.slurm import Slurm
from rt2_jax.errors import UserError
from tests.clusters import slurm_cluster
from tests.clusters.conftest import starts


@pytest.fixture(scope="module", autouse=True)
def two_nodes(tmp_path_factory):
  with slurm_cluster.running(tmp_path_factory.mktemp("slurm")):
    yield


@pytest.fixture
def said():
  return []


@pytest.fixture
def cluster(tmp_path, said):
  commands = Commands(slurm.ADVICE, slurm.INSTALL, say=said.append)
  return Slurm(
    tmp_path / "pods/run", 2, 2, commands, poll_s=0.3, say=said.append
  )


def test_the_job_restarts_itself_and_is_requeued_from_outside(
  cluster, make_job, said
):
  job = make_job(
    {"others": "exit 42"},
    {"1": "kill", "others": "exit 0"},
    {"others": "hang"},
    {"others": "exit 0"},
  )

  def requeue():
    deadline = time.monotonic() + 60
    while any(len(starts(job, n)) < 3 for n in range(2)):
      assert time.monotonic() < deadline
      time.sleep(0.1)
    with pytest.raises(UserError, match="run 'run', whose job 1 is RUNNING"):
      cluster.start(job)
    assert "job 1 RUNNING" in cluster.status()
    slurm_cluster.slurm("scontrol", "requeue", "1")

  thread = threading.Thread(target=requeue)
  thread.start()
  cluster.setup = "export SET_UP=1"
  restarts.run(cluster, job, said.append)
  thread.join()
  assert [len(starts(job, n)) for n in range(2)] == [4, 4]
  start = starts(job, 1)[0]
  assert start.startswith("--config=x y.py ")
  assert start.endswith(f" --multihost in {cluster.folder}/code")
  # The log of process 0, each line once.
  log = [line for line in said if "start" in line or line == "saved"]
  kinds = ["0: exit 42", "1: exit 0", "2: hang", "saved", "3: exit 0"]
  found = [line for line in log if line.endswith(tuple(kinds))]
  assert [k for line in found for k in kinds if line.endswith(k)] == kinds
  assert said[-1] == "run: done"
  cluster.logs()
  assert "exit code 137: restart 2 of at most 3" in said[-1]


def test_a_folder_of_any_name(cluster, make_job, said, tmp_path):
  cluster = dataclasses.replace(cluster, folder=tmp_path / "my 'pods' é/run")
  job = make_job({"others": "exit 42"}, {"others": "exit 0"})
  restarts.run(cluster, job, said.append)
  assert said[-1] == "run: done" and "process 0, start 1: exit 0" in said
  cluster.logs()
  assert "exit code 42: restart 1 of at most 3" in said[-1]


def test_an_error_of_the_training_ends_the_job(cluster, make_job, said):
  job = make_job({"0": "exit 1", "others": "exit 42"})
  with pytest.raises(
    UserError, match=r"exit code 1 and state FAILED .*(\n.*)*start 0: exit 1"
  ):
    restarts.run(cluster, job, said.append)
  assert len(starts(job, 0)) == 1


def test_restarts_have_a_limit(cluster, make_job, said):
  job = make_job({"others": "exit 42"}, max_restarts=0)
  with pytest.raises(UserError, match="restarts are used up: run again, or"):
    restarts.run(cluster, job, said.append)
  assert len(starts(job, 0)) == 1


def test_stop_lets_the_processes_save(cluster, make_job, said):
  job = make_job({"others": "hang"})
  cluster.start(job)
  while not all(starts(job, n) for n in range(2)):
    time.sleep(0.1)
  cluster.stop()
  while cluster.wait().ending.value != "stopped":
    pass
  assert "saved" in said
  cluster.delete()
  assert not cluster.folder.exists()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"partition": "nope"}, "'nope', expected one of this cluster's: main, sh"),
    ({"nodes": 3, "num_processes": 3}, "waits for ever .PartitionConfig|fewer"),
    ({"options": ["--time=99", "--partition=short"]}, "waits for ever|limit"),
    ({"options": ["--frobnicate"]}, "frobnicate"),
  ],
)
def test_what_slurm_refuses(cluster, make_job, said, fields, message):
  for name, value in fields.items():
    setattr(cluster, name, value)
  with pytest.raises(UserError, match=message):
    restarts.run(cluster, make_job({"others": "exit 0"}), said.append)
  cluster.stop()


def test_without_the_controller(cluster, make_job, monkeypatch, tmp_path):
  conf = tmp_path / "slurm.conf"
  conf.write_text("ClusterName=x\nSlurmctldHost=localhost\nNodeName=a\n")
  monkeypatch.setenv("SLURM_CONF", str(conf))
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(UserError, match="'sinfo' on PATH.*login node"):
    cluster.create()


def test_a_dry_run_prints_the_script(cluster, make_job, said):
  cluster.commands = Commands({}, {}, dry_run=True, say=said.append)
  cluster.partition = "gpu"
  cluster.start(make_job({"others": "exit 0"}))
  cluster.stop()
  text = "\n".join(said)
  assert "git archive" in text and "#SBATCH --nodes=2" in text
  assert "#SBATCH --partition=gpu" in text and said[-1].startswith("scancel")
  assert any(line.startswith("sbatch ") for line in said)
  assert not cluster.folder.exists()

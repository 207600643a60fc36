"""The GKE backend: the real xpk in its dry run, a stand-in for kubectl."""

import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from rt2_jax.clusters import gke, restarts
from rt2_jax.clusters.cluster import Ending
from rt2_jax.clusters.commands import Commands
from rt2_jax.clusters.gke import Gke
from rt2_jax.errors import UserError
from tests.clusters.conftest import starts
from tests.conftest import ROOT

XPK = pathlib.Path(os.environ.get("XPK", ROOT / ".venv-xpk/bin/xpk"))
# Answers with the next file of a folder, and stays at the last one.
KUBECTL = """\
#!/bin/bash
cd {folder}
echo "$@" >> calls
case "$*" in
  "get jobset"*) file=$(ls jobset.* | head -1); text=$(cat "$file")
    if [ $(ls jobset.* | wc -l) -gt 1 ]; then rm "$file"; fi
    if [[ $text = Error* ]]; then echo "$text" >&2; exit 1; fi
    echo "$text" ;;
  logs*) cat log ;;
  *) echo "pod run-slice-job-0-0 Running" ;;
esac
"""


@pytest.fixture
def said():
  return []


@pytest.fixture
def bin_folder(tmp_path, monkeypatch):
  """Programs that stand in for real ones; HOME is empty."""
  folder = tmp_path / "bin"
  folder.mkdir()
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
  monkeypatch.setenv("HOME", str(tmp_path))
  return folder


def program(path: pathlib.Path, text: str):
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def xpk(bin_folder):
  """The real one; nothing is sent to its makers."""
  if not XPK.exists() and "CI" not in os.environ:
    pytest.skip("needs `make .venv-xpk/installed`")
  (bin_folder / "xpk").symlink_to(XPK)
  config = bin_folder.parent / ".config/xpk"
  config.mkdir(parents=True)
  (config / "config.yaml").write_text(
    'version: v1\nconfigs:\n  send-telemetry: "false"\n'
  )


@pytest.fixture
def kubectl(bin_folder, tmp_path):
  """Writes what the cluster answers, one JobSet after the other."""
  folder = tmp_path / "kubernetes"
  folder.mkdir()
  program(bin_folder / "kubectl", KUBECTL.format(folder=folder))
  # Its own test is the dry run.
  program(bin_folder / "xpk", f'#!/bin/bash\necho "$@" >> {folder}/xpk\n')

  def write(*jobsets: dict | str, log: str = ""):
    (folder / "log").write_text(log)
    for n, jobset in enumerate(jobsets):
      text = jobset if isinstance(jobset, str) else json.dumps(jobset)
      (folder / f"jobset.{n:03}").write_text(text)
    return folder

  return write


@pytest.fixture
def cluster(said):
  return Gke(
    name="run",
    cluster="pods",
    zone="us-west4-a",
    accelerator="v5litepod-16",
    commands=Commands(gke.ADVICE, gke.INSTALL, say=said.append),
    project="p",
    num_slices=2,
    options=["--spot"],
    setup="",
    poll_s=0.05,
    say=said.append,
  )


def jobset(kind: str = "", restarts: int = 0, **condition) -> dict:
  conditions = [{"type": kind, "status": "True", **condition}] if kind else []
  return {"status": {"restarts": restarts, "conditions": conditions}}


def manifest(said: list[str]) -> str:
  """The JobSet that xpk would create, from its own words."""
  text = "\n".join(said)
  return text[text.index("kind: JobSet") : text.index("Creating Workload")]


def test_the_real_xpk_takes_every_command(cluster, xpk, make_job, said):
  cluster.commands = Commands({}, {}, dry_run=True, say=said.append)
  job = make_job({"others": "hang"}, max_restarts=7)
  cluster.start(job)
  workload = manifest(said)
  assert "maxRestarts: 7" in workload and "replicas: 2" in workload
  assert "completions: 4 " in workload  # hosts of a v5litepod-16
  assert "cloud.google.com/gke-tpu-topology: 4x4" in workload
  restarted = re.search(r"operator: NotIn\s+values: \[([\d,]+)\]", workload)[1]
  assert {"42", "137"} <= set(restarted.split(","))
  assert not {"0", "1", "2"} & set(restarted.split(","))
  for method in (cluster.create, cluster.stop, cluster.delete):
    said.clear()
    method()
    assert said[0].startswith("xpk ") and "not running since it is a" in str(
      said
    )
  assert any("gcloud beta container clusters delete pods" in s for s in said)


def test_the_pods_training_gets_sigterm_and_its_exit_code_counts(
  cluster, xpk, make_job, said, tmp_path
):
  """xpk's own shell script, run here."""
  cluster.commands = Commands({}, {}, dry_run=True, say=said.append)
  job = make_job({"others": "hang"})
  cluster.start(job)
  code = tmp_path / "app"
  job.code.unpack(code)
  block = manifest(said).partition("- |\n")[2].partition("resources:")[0]
  script = block.replace("/app", str(code)).replace("sleep 5", "sleep 0.1")
  script = script.replace("exec python", f"exec {sys.executable}")
  pod = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE)
  while not starts(job, 0):
    time.sleep(0.05)
  pod.send_signal(signal.SIGTERM)
  out, _ = pod.communicate(timeout=30)
  assert pod.returncode == 42 and b"saved" in out
  assert starts(job, 0)[0].endswith(f"--multihost in {code}")


def test_the_run_is_watched_until_it_has_completed(
  cluster, kubectl, make_job, said
):
  waiting = {"spec": {"suspend": True}}
  folder = kubectl(
    'Error from server (NotFound): jobsets "run" not found',
    *(waiting, jobset(), jobset(), jobset(restarts=1)),
    jobset("Completed", restarts=1),
    log="step 1\nstep 2\n",
  )
  restarts.run(cluster, make_job({"others": "exit 0"}), said.append)
  (create,) = (folder / "xpk").read_text().splitlines()
  assert create.startswith("workload create --workload=run --tpu-type=v5lite")
  states = [line for line in said if line.startswith("run: ")]
  assert states == [
    "run: waits in Kueue's queue for free chips",
    "run: runs",
    "run: runs after 1 restarts",
    "run: has completed after 1 restarts",
    "run: done",
  ]
  # Once for each start of the pod.
  assert [line for line in said if line.startswith("step")] == [
    "step 1",
    "step 2",
  ] * 2
  assert "has completed" in cluster.status()


def test_a_failed_workload_is_explained_and_replaced(
  cluster, kubectl, make_job, said
):
  failed = jobset("Failed", reason="ReachedMaxRestarts", message="too many")
  folder = kubectl(failed)
  with pytest.raises(UserError, match="ReachedMaxRestarts: too many.*raise --"):
    restarts.run(cluster, make_job({"others": "exit 0"}), said.append)
  calls = (folder / "xpk").read_text().splitlines()
  assert [call.split()[1] for call in calls] == ["delete", "create"]
  kubectl(jobset("Failed", reason="PodFailurePolicy", message="exit code 1"))
  with pytest.raises(UserError, match="exit code 1.*pod.py logs`, correct it"):
    cluster.wait()
  kubectl('Error from server (NotFound): jobsets "run" not found')
  assert cluster.wait().ending is Ending.STOPPED
  assert cluster.status() == "run: no such workload in cluster pods"


def test_a_second_run_of_the_same_name_is_refused(cluster, kubectl, make_job):
  kubectl(jobset(restarts=2))
  with pytest.raises(UserError, match="whose workload runs after 2 restarts;"):
    cluster.start(make_job({"others": "exit 0"}))


@pytest.mark.parametrize(
  ("said_by_xpk", "advice"),
  [
    ("Insufficient quota to satisfy the request", "IAM & Admin, Quotas"),
    ("GCE_STOCKOUT: does not have enough resources", "another --zone"),
    ("cluster pods does not exist", "make the cluster with `pod.py create`"),
    ("403 Forbidden", "Kubernetes Engine Admin"),
    ("couldn't get credentials", "gcloud auth login"),
    ("dial tcp: i/o timeout", "control plane does not answer"),
  ],
)
def test_what_xpk_refuses(cluster, bin_folder, said_by_xpk, advice):
  program(bin_folder / "xpk", f'#!/bin/sh\necho "{said_by_xpk}"; exit 1\n')
  with pytest.raises(UserError, match=advice):
    cluster.create()

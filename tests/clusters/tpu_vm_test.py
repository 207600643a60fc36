"""The TPU VM backend with a stand-in for gcloud, see fake_gcloud.py."""

import contextlib
import dataclasses
import json
import os
import signal
import stat
import sys
import threading
import time

import psutil
import pytest

from rt2_jax.clusters import restarts, tpu_vm
from rt2_jax.clusters.cluster import Ending, Unavailable
from rt2_jax.clusters.commands import Commands
from rt2_jax.clusters.tpu_vm import TpuVm
from rt2_jax.errors import UserError
from tests.clusters.conftest import HERE, starts

ACTIVE = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


class Cloud:
  """What the stand-in reads and writes."""

  def __init__(self, folder):
    self.folder = folder
    self.write("plan", {"creations": [ACTIVE]})

  def read(self, name: str) -> dict:
    return json.loads((self.folder / f"{name}.json").read_text())

  def write(self, name: str, value: dict):
    (self.folder / f"{name}.json").write_text(json.dumps(value))

  def plan(self, **changes):
    self.write("plan", self.read("plan") | changes)

  def calls(self, verb: str) -> list[list[str]]:
    lines = (self.folder / "calls").read_text().splitlines()
    return [call for call in map(json.loads, lines) if call[3] == verb]

  def processes(self) -> list[int]:
    return [int(p.read_text()) for p in self.folder.glob("homes/*/*/*/pid")]

  def end(self):
    """Kills what runs, as a machine that is gone does."""
    for process in self.processes():
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  folder = tmp_path / "cloud"
  (folder / "bin").mkdir(parents=True)
  programs = {
    "gcloud": f'exec {sys.executable} -S {HERE}/fake_gcloud.py "$@"',
    "hostname": 'basename "$HOME"',
    "python": f'exec {sys.executable} -S "$@" --process_id=$(hostname)',
  }
  for name, line in programs.items():
    path = folder / "bin" / name
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
  monkeypatch.setenv("FAKE_CLOUD", str(folder))
  cloud = Cloud(folder)
  yield cloud
  cloud.end()


@pytest.fixture
def said():
  return []


@pytest.fixture
def tpu(cloud, said):
  return TpuVm(
    name="run",
    zone="us-west4-a",
    accelerator="v5litepod-8",
    runtime_version="v2-alpha-tpuv5-lite",
    commands=Commands(tpu_vm.ADVICE, tpu_vm.INSTALL, say=said.append),
    options=["--spot"],
    setup=":",
    poll_s=0.1,
    say=said.append,
  )


def until(condition):
  deadline = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_create_waits_until_the_slice_is_there(tpu, cloud, said):
  tpu.create()
  assert said == [f"run: {state}" for state in ACTIVE]
  (create,) = cloud.calls("create")
  wanted = {"--node-id=run", "--zone=us-west4-a", "--spot"}
  wanted |= {"--accelerator-type=v5litepod-8"}
  assert wanted | {"--runtime-version=v2-alpha-tpuv5-lite"} <= set(create)
  assert tpu.status().startswith("queued resource run: ACTIVE\nnode run: READY")
  tpu.delete()
  assert tpu.status() == "queued resource run: missing"


@pytest.mark.parametrize(
  ("plan", "kind", "message"),
  [
    (
      {"creations": [{"error": "Quota limit 'TPUV5sPerProject' exceeded"}]},
      UserError,
      "Quota limit.*\n.*in the console .IAM",
    ),
    (
      {"creations": [["FAILED"]], "failure": "RESOURCE_EXHAUSTED: Quota 'X'"},
      UserError,
      "state FAILED: .*Quota 'X'.*delete. it.*in the console",
    ),
    (
      {
        "creations": [["ACCEPTED", "FAILED"]],
        "failure": "There is no more capacity in the zone",
      },
      Unavailable,
      "no more capacity.*take another --zone",
    ),
    ({"creations": [["SUSPENDED"]]}, Unavailable, "in state SUSPENDED"),
    ({"node": "CREATING"}, Unavailable, "'CREATING'.*the slice is half-creat"),
    (
      {"creations": [{"error": "INVALID_ARGUMENT: accelerator type"}]},
      UserError,
      "accelerator-types list",
    ),
    (
      {"creations": [{"error": "PERMISSION_DENIED: tpu.nodes.create"}]},
      UserError,
      "role TPU Admin",
    ),
  ],
)
def test_what_the_cloud_refuses(tpu, cloud, plan, kind, message):
  cloud.plan(**plan)
  with pytest.raises(kind, match=message) as caught:
    tpu.create()
  assert type(caught.value) is not Unavailable or kind is Unavailable


def test_one_that_is_there_already(tpu):
  tpu.create()
  with pytest.raises(UserError, match="already exists\n.*half-created"):
    tpu.create()


def test_preempted_lost_and_recreated_until_done(tpu, cloud, make_job, said):
  """Exit code 42, a killed worker, a slice that is gone, then the end."""
  job = make_job(
    {"others": "exit 42"},
    {"run-w-1": "kill", "others": "exit 1"},
    {"others": "hang"},
    {"others": "exit 0"},
  )
  tpu.create()

  def preempt():
    until(lambda: all(len(starts(job, f"run-w-{n}")) == 3 for n in range(2)))
    cloud.write("state", {"made": 1, "resources": {"run": ["SUSPENDED"]}})
    cloud.end()

  thread = threading.Thread(target=preempt)
  thread.start()
  restarts.run(tpu, job, said.append, lambda _: None)
  thread.join()
  assert len(cloud.calls("create")) == 2 and len(cloud.calls("delete")) == 1
  for n in range(2):
    found = starts(job, f"run-w-{n}")
    assert len(found) == 4
    home = cloud.folder / "homes" / f"run-w-{n}"
    assert found[0].endswith(f" in {home}/rt2_jax/run/code")
    assert found[0].startswith("--config=x y.py --workdir=")
  shown = [line for line in said if line.startswith("process run-w-0")]
  assert len(shown) == len(set(shown)) >= 3  # the log of worker 0, once
  reasons = [line for line in said if line.startswith("run: ")]
  assert "run: lost (killed: worker run-w-1 by signal 9)" in reasons
  assert "run: lost (the queued resource is SUSPENDED)" in reasons
  assert reasons[-1] == "run: done after 3 restarts"


def test_an_error_of_the_training_is_shown(tpu, make_job, said):
  job = make_job({"run-w-1": "exit 1", "others": "exit 42"})
  tpu.create()
  with pytest.raises(
    UserError,
    match=r"code 1 from worker run-w-1, .*(\n.*)*process run-w-1, start 0: exi",
  ):
    restarts.run(tpu, job, said.append)


def test_a_second_run_of_the_same_name_is_refused(tpu, cloud, make_job, said):
  """It would kill what the first one has not saved."""
  job = make_job({"others": "hang"})
  tpu.create()
  tpu.start(job)
  until(lambda: all(starts(job, f"run-w-{n}") for n in range(2)))
  with pytest.raises(UserError, match="'run', .* worker run-w-0, run-w-1; "):
    dataclasses.replace(tpu).start(job)
  tpu.stop()
  until(lambda: len(list(cloud.folder.glob("homes/*/*/*/ended"))) == 2)
  dataclasses.replace(tpu).start(job)
  until(lambda: all(len(starts(job, f"run-w-{n}")) == 2 for n in range(2)))
  assert tpu._on_workers("cat ~/rt2_jax/run/log.before").count("saved") == 2


def test_without_a_training_there_is_nothing_to_stop_or_show(
  tpu, cloud, make_job, said
):
  tpu.create()
  tpu.logs()
  assert said[-1].count("no log yet") == 2
  tpu.stop()
  tpu.start(make_job({"others": "exit 0"}))
  assert tpu.wait().ending is Ending.DONE
  for process in cloud.processes():
    until(lambda process=process: not psutil.pid_exists(process))
  tpu.stop()


def test_stop_ends_the_run_after_it_has_saved(tpu, cloud, make_job, said):
  job = make_job({"others": "hang"})
  tpu.create()
  tpu.start(job)
  until(lambda: all(starts(job, f"run-w-{n}") for n in range(2)))
  assert tpu.status().count("runs") == 2
  tpu.stop()
  until(lambda: len(list(cloud.folder.glob("homes/*/*/*/ended"))) == 2)
  assert tpu.wait().ending is Ending.STOPPED
  tpu.start(job)  # as a restart that was on its way
  assert tpu.wait().ending is Ending.STOPPED
  tpu.logs()
  assert said[-1].count("saved") == 2


def test_a_lost_connection_is_tried_again(tpu, cloud, make_job, said):
  job = make_job({"others": "exit 0"})
  tpu.create()
  cloud.plan(lost=3)
  restarts.run(tpu, job, said.append)
  assert sum("ssh was lost, tried again" in line for line in said) == 3
  cloud.plan(lost=100)
  with pytest.raises(UserError, match="port 22 exited.*\n.*firewall"):
    restarts.run(tpu, job, said.append)


def test_a_node_that_is_gone_is_replaced(tpu, cloud, make_job, said):
  """Although its queued resource is still ACTIVE."""
  job = make_job({"others": "hang"}, {"others": "exit 0"})
  tpu.poll_s = 0.01
  tpu.create()

  def preempt():
    until(lambda: all(starts(job, f"run-w-{n}") for n in range(2)))
    cloud.plan(node="PREEMPTED", lost=1000)
    cloud.end()

  thread = threading.Thread(target=preempt)
  thread.start()
  restarts.run(tpu, job, said.append, lambda _: None)
  thread.join()
  assert len(cloud.calls("create")) == 2
  assert "run: lost (worker 0 does not answer)" in said
  assert said[-1] == "run: done after 1 restarts"


def test_several_slices(tpu, cloud, make_job, said):
  job = make_job({"others": "exit 0"})
  tpu.num_slices = 2
  tpu.create()
  create = cloud.calls("create")[-1]
  assert {"--node-count=2", "--node-prefix=run"} <= set(create)
  restarts.run(tpu, job, said.append)
  for node in range(2):
    for worker in range(2):
      assert len(starts(job, f"run-{node}-w-{worker}")) == 1


def test_a_dry_run_prints_the_commands(tpu, cloud, make_job, said):
  tpu.commands = Commands({}, {}, dry_run=True, say=said.append)
  tpu.create()
  tpu.start(make_job({"others": "exit 0"}))
  tpu.stop()
  tpu.delete()
  kinds = [" ".join(line.split()[:5]) for line in said if "gcloud" in line]
  assert kinds[0] == "gcloud compute tpus queued-resources create"
  assert {f"gcloud compute tpus tpu-vm {x}" for x in ("ssh", "scp")} < set(
    kinds
  )
  assert not (cloud.folder / "calls").exists()

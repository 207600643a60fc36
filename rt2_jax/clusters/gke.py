"""Google Kubernetes Engine, through `xpk` (and `kubectl` to look on).

`xpk` makes the cluster's node pools, puts the code into a container image and
creates a JobSet, one pod for each host. The JobSet restarts all pods after exit
code 42, after a killed process and after a lost node; any other code
fails it. So the run goes on without this program.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rt2_jax.clusters.cluster import (
  Cluster,
  Ending,
  Job,
  Outcome,
)
from rt2_jax.clusters.commands import CommandError, Commands
from rt2_jax.errors import UserError

INSTALL: Mapping[str, str] = {
  "xpk": "`pip install xpk` in an environment of its own, `xpk` on PATH",
  "kubectl": "`gcloud components install kubectl gke-gcloud-auth-plugin`",
}
_NO_CAPACITY = (
  "stockout|no more capacity|RESOURCE_EXHAUSTED|not have enough resources"
)
ADVICE: Mapping[str, str] = {
  "quota": "ask for more of this quota in the console (IAM & Admin, Quotas), "
  "or take a smaller --accelerator, another --zone, or --options=--spot",
  _NO_CAPACITY: "no such slice is free now: try again later, take another "
  "--zone or a smaller --accelerator, or pass --options=--reservation=…",
  "already exists": "stop or delete it first, or choose another --name",
  "does not exist|not found|NOT_FOUND|404": "check --cluster, --zone and "
  "--project, or make the cluster with `pod.py create`",
  "PERMISSION_DENIED|forbidden|403": "let an owner of the project give you the "
  "roles Kubernetes Engine Admin and Artifact Registry Writer",
  "credentials|gcloud auth|gke-gcloud-auth-plugin": "log in with `gcloud auth "
  "login`, and install gke-gcloud-auth-plugin",
  "connection refused|i/o timeout|Unable to connect": "the cluster's control "
  "plane does not answer: check the network and --cluster",
  "dependency|crane|docker": "xpk needs crane or docker to make the image; see "
  "its README",
  "tpu-type|device type|invalid choice": "see xpk's list of --tpu-type values, "
  "such as v5litepod-256 or v6e-256",
}
SETUP = "python -m pip install --quiet -c constraints.txt -e '.[tpu,gcs]'"
IMAGE = "python:3.11"

_FOLDER = "/app"  # where xpk puts --script-dir
_SELECTOR = "jobset.sigs.k8s.io/jobset-name"
_MOST_PODS = 4096  # kubectl's own limit is 5
_FIRST_POD = (
  "jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
)


@dataclasses.dataclass
class Gke(Cluster):
  """A workload of a GKE cluster.

  Attributes:
    name: of the workload and of the run.
    cluster: its name.
    zone: e.g. "us-west4-a".
    accelerator: xpk's --tpu-type, e.g. "v5litepod-256".
    commands: how `xpk` and `kubectl` are run.
    project: "" for gcloud's own default.
    num_slices: how many, each of them an `accelerator`.
    options: more of `xpk cluster create`, e.g. "--spot".
    image: a container image with Python, to which the code is added.
    setup: shell command in every pod before the training; "" if the image has
      all packages.
    poll_s: seconds between looks at the workload.
    say: where lines are printed.
  """

  name: str
  cluster: str
  zone: str
  accelerator: str
  commands: Commands
  project: str = ""
  num_slices: int = 1
  options: Sequence[str] = ()
  image: str = IMAGE
  setup: str = SETUP
  poll_s: float = 30.0
  say: Callable[[str], None] = print

  def __post_init__(self):
    self._shown = (0, 0)  # restarts, and lines of the first pod since then

  def create(self):
    self._xpk("cluster", "create", *self._slices(), *self.options)

  def start(self, job: Job):
    self._make_room()
    with tempfile.TemporaryDirectory() as folder:
      code = pathlib.Path(folder, "code")
      job.code.unpack(code)
      self._xpk(
        *("workload", "create", f"--workload={self.name}", *self._slices()),
        f"--base-docker-image={self.image}",
        f"--script-dir={code}",
        f"--max-restarts={job.max_restarts}",
        f"--command={self.command(job)}",
      )
    if not self.commands.dry_run:
      self.say(
        f"workload {self.name} goes on, and restarts, without this program "
        "(Ctrl-C leaves it alone)"
      )

  def wait(self) -> Outcome:
    said = ""
    while True:
      jobset = self._jobset()
      if jobset is None:
        return Outcome(Ending.STOPPED)
      state = _state(jobset)
      if state != said:
        self.say(f"{self.name}: {state}")
      said = state
      self._print_new_lines(jobset)
      for condition in _true_conditions(jobset):
        if condition["type"] == "Completed":
          return Outcome(Ending.DONE)
        if condition["type"] == "Failed":
          raise self._error(condition)
      time.sleep(self.poll_s)

  def recover(self):
    pass  # GKE repairs its nodes

  def status(self) -> str:
    jobset = self._jobset()
    if jobset is None:
      return f"{self.name}: no such workload in cluster {self.cluster}"
    pods = self._kubectl("get", "pods", self._pods(), "--output=wide")
    return f"{self.name}: {_state(jobset)}\n{pods}"

  def logs(self):
    self.say(
      self._kubectl(
        *("logs", self._pods(), "--prefix", "--tail=20"),
        f"--max-log-requests={_MOST_PODS}",
      )
    )

  def stop(self):
    """Deletes the workload; the pods have 30 s to save."""
    self._xpk("workload", "delete", f"--workload={self.name}")

  def delete(self):
    """Deletes the whole cluster."""
    self._xpk("cluster", "delete", "--force")

  def command(self, job: Job) -> str:
    """The shell line that every pod runs.

    xpk sends SIGTERM to the shell that runs it. `exec` puts the training in the
    shell's place.
    """
    run = shlex.join(("python", job.program, *job.arguments, "--multihost"))
    setup = f"{self.setup} && " if self.setup else ""
    return (
      f"cd {_FOLDER} && {setup}export PYTHONPATH={_FOLDER} PYTHONUNBUFFERED=1 "
      f"&& exec {run}"
    )

  def _slices(self) -> list[str]:
    return [
      f"--tpu-type={self.accelerator}",
      f"--num-slices={self.num_slices}",
    ]

  def _xpk(self, *arguments: str):
    """Runs xpk; in a dry run its own, which prints the commands behind it."""
    place = [f"--cluster={self.cluster}", f"--zone={self.zone}"]
    if self.project:
      place.append(f"--project={self.project}")
    command = ("xpk", *arguments, *place)
    self.commands.show(*command)
    if self.commands.dry_run:
      real = dataclasses.replace(self.commands, dry_run=False)
      real.show(*command, "--dry-run", "--skip-validation")

  def _kubectl(self, *arguments: str) -> str:
    return self.commands.run("kubectl", *arguments)

  def _pods(self, more: str = "") -> str:
    return f"--selector={_SELECTOR}={self.name}{more}"

  def _jobset(self) -> dict[str, Any] | None:
    """The workload as Kubernetes describes it; None where it does not exist."""
    try:
      said = self._kubectl("get", "jobset", self.name, "--output=json")
    except CommandError as error:
      if "NotFound" not in error.said:
        raise
      return None
    return json.loads(said) if said else None

  def _make_room(self):
    """Deletes an ended workload of the same name."""
    jobset = self._jobset()
    if jobset is None:
      return
    ended = {c["type"] for c in _true_conditions(jobset)}
    if not ended & {"Completed", "Failed"}:
      raise UserError(
        f"got run {self.name!r}, whose workload {_state(jobset)}; look at it "
        "with `pod.py status` and `pod.py logs`, stop it with `pod.py stop`, "
        "or choose another --name"
      )
    self.stop()

  def _print_new_lines(self, jobset: Mapping[str, Any]):
    restarts, shown = self._shown
    now = jobset.get("status", {}).get("restarts", 0)
    if now != restarts:
      shown = 0
    first = self._pods(f",{_FIRST_POD}")
    try:
      lines = self._kubectl("logs", first, "--tail=-1").splitlines()
    except CommandError:
      return  # the pod is not there yet, or not any more
    for line in lines[shown:]:
      self.say(line)
    self._shown = now, max(shown, len(lines))

  def _error(self, condition: Mapping[str, Any]) -> UserError:
    message = condition.get("message", "")
    advice = "look at all pods with `pod.py logs`, correct it and run again"
    if "restart" in f"{condition.get('reason')} {message}".lower():
      advice = "its restarts are used up: run again, or raise --max_restarts"
    return UserError(
      f"got workload {self.name!r} that failed ({condition.get('reason')}: "
      f"{message}), expected it to complete; {advice}"
    )


def _true_conditions(jobset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  conditions = jobset.get("status", {}).get("conditions", [])
  return [c for c in conditions if c.get("status") == "True"]


def _state(jobset: Mapping[str, Any]) -> str:
  """In words, such as "runs after 2 restarts"."""
  restarts = jobset.get("status", {}).get("restarts", 0)
  after = f" after {restarts} restarts" * bool(restarts)
  types = [c["type"] for c in _true_conditions(jobset)]
  if "Completed" in types or "Failed" in types:
    return f"has {'completed' if 'Completed' in types else 'failed'}{after}"
  if jobset.get("spec", {}).get("suspend") or "Suspended" in types:
    return f"waits in Kueue's queue for free chips{after}"
  return f"runs{after}"

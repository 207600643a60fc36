"""Cloud TPU VMs as queued resources, through `gcloud`.

A queued resource waits for a slice (or several), holds it, and loses it when it
is preempted; `recover` then deletes it and queues again. The code is copied to
every worker, for they share no disk. A training outlives the connection that
started it: each worker keeps `pid`, `log` and `ended` (the exit code) in
`~/rt2_jax/NAME`, and this program looks at them every half minute. It has to
keep running, since it alone replaces a preempted slice.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rt2_jax.clusters import worker_scripts
from rt2_jax.clusters.cluster import (
  Cluster,
  Ending,
  Job,
  Outcome,
  Unavailable,
  failed,
  outcome_of,
)
from rt2_jax.clusters.commands import CommandError, Commands
from rt2_jax.errors import UserError

INSTALL: Mapping[str, str] = {
  "gcloud": "https://cloud.google.com/sdk/docs/install, then `gcloud init`"
}
_QUOTA = r"quota"
_CONNECTION = r"Connection (refused|timed out|closed|reset)|port 22|\[255\]"
_NO_CAPACITY = r"no more capacity|RESOURCE_EXHAUSTED|stockout|out of capacity"
ADVICE: Mapping[str, str] = {
  _QUOTA: "ask for more of this quota in the console (IAM & Admin, Quotas), or "
  "take a smaller --accelerator, another --zone, or --options=--spot",
  _NO_CAPACITY: "no such slice is free now: try again later, take another "
  "--zone or a smaller --accelerator, or pass --options=--reserved",
  "ALREADY_EXISTS|already exists": "look at it with `pod.py status`; if it is "
  "half-created or failed, `pod.py delete` it, then create it again",
  "NOT_FOUND|was not found": "check --name, --zone and --project, or get the "
  "machines with `pod.py create`",
  "PERMISSION_DENIED|does not have permission|403": "let an owner of the "
  "project give you the role TPU Admin, and enable tpu.googleapis.com",
  "credentials|gcloud auth": "log in with `gcloud auth login`",
  "accelerator.?type|runtime.?version|INVALID_ARGUMENT": "see `gcloud compute "
  "tpus accelerator-types list --zone=…` and `… versions list --zone=…`",
  _CONNECTION: "ssh does not reach every worker: allow port 22 in the "
  "network's firewall, check `gcloud compute config-ssh`, look at the nodes "
  "with `pod.py status`",
}
_SSH_LOST = 255  # ssh's own exit code
_TRIES = 4  # of a command on the workers
_LOOKS = 10  # at workers that do not answer, before they are lost
_POLLS = 4  # for the others to end after worker 0
_GONE_FOR_GOOD = ("PREEMPTED", "TERMINATED", "STOPPED", "FAILED")  # nodes
_WAITING = ("ACCEPTED", "PROVISIONING", "CREATING", "WAITING_FOR_RESOURCES")
_MISSING = "missing"
_GONE = 128 + 9  # as if a signal had killed it: the worker was started anew


@dataclasses.dataclass
class TpuVm(Cluster):
  """One queued resource, of one slice or several.

  Attributes:
    name: of the queued resource and of the run.
    zone: e.g. "us-west4-a".
    accelerator: e.g. "v5litepod-256".
    runtime_version: e.g. "v2-alpha-tpuv5-lite".
    commands: how `gcloud` is run.
    project: "" for gcloud's own default.
    num_slices: how many, each of them an `accelerator`.
    options: more of `queued-resources create`, e.g. "--spot".
    setup: shell commands on every worker before the training; they end with
      the `python` that is to run on PATH.
    poll_s: seconds between looks at the workers.
    say: where lines are printed.
  """

  name: str
  zone: str
  accelerator: str
  runtime_version: str
  commands: Commands
  project: str = ""
  num_slices: int = 1
  options: Sequence[str] = ()
  setup: str = worker_scripts.SETUP
  poll_s: float = 30.0
  say: Callable[[str], None] = print

  def __post_init__(self):
    self._line = 1  # the next one of worker 0's log
    self._started = False

  def create(self):
    ids = [f"--node-id={self.name}"]
    if self.num_slices > 1:
      ids = [f"--node-count={self.num_slices}", f"--node-prefix={self.name}"]
    self._queued(
      "create",
      *ids,
      f"--accelerator-type={self.accelerator}",
      f"--runtime-version={self.runtime_version}",
      *self.options,
    )
    self._until_active()
    self._check_nodes()

  def start(self, job: Job):
    if not self._started:
      self._refuse_second()
    stopping = worker_scripts.UNLESS_STOPPED if self._started else ""
    command = shlex.join((job.program, *job.arguments, "--multihost"))
    script = worker_scripts.START.format(
      name=self.name,
      unless_stopped=stopping,
      setup=self.setup,
      command=f"python {command}",
    )
    with tempfile.TemporaryDirectory() as folder:
      archive = pathlib.Path(folder, "code.tar.gz")
      if self.commands.dry_run:
        self.say(f"git archive --output={archive} {job.code.commit}")
      else:
        job.code.pack(archive)
      self._on_workers(f"mkdir -p ~/rt2_jax/{self.name}")
      for node in self.nodes:
        place = f"{node}:rt2_jax/{self.name}/"
        self._tried("scp", str(archive), place, "--worker=all")
      self._on_workers(script)
    self._started = True
    self._line = 1

  def wait(self) -> Outcome:
    failures = 0
    while True:
      try:
        state, _ = self._state()
        if state != "ACTIVE":
          return Outcome(Ending.LOST, f"the queued resource is {state}")
        (first,) = self._reports(first_only=True).values()
        self._print_new_lines()
        if first != "runs":
          return self._ended()
        failures = 0
      except (CommandError, Unavailable) as error:
        # The training does not need this connection.
        failures += 1
        self.say(f"no answer, look {failures} of {_LOOKS}: {error}")
        if failures == _LOOKS:
          return Outcome(Ending.LOST, "worker 0 does not answer")
      time.sleep(self.poll_s)

  def recover(self):
    """Queues again where the slice was preempted or has failed."""
    state, _ = self._state()
    nodes = [self._node_state(n) for n in self.nodes] * (state == "ACTIVE")
    broken = [node for node in nodes if node in _GONE_FOR_GOOD]
    if state == "ACTIVE" and not broken:
      self._check_nodes()
      return
    self.say(
      f"{self.name} is {' '.join([state, *broken])}: it is deleted and queued "
      "again"
    )
    if state != _MISSING:
      self.delete()
    self.create()

  def status(self) -> str:
    state, reason = self._state()
    lines = [f"queued resource {self.name}: {state} {reason}".rstrip()]
    if state == "ACTIVE":
      lines += [f"node {n}: {self._node_state(n)}" for n in self.nodes]
      lines += [f"worker {k}: {v}" for k, v in self._reports().items()]
    return "\n".join(lines)

  def logs(self):
    self.say(
      self._on_workers(
        worker_scripts.LAST_LINES.format(name=self.name, count=20)
      )
    )

  def stop(self):
    self._on_workers(worker_scripts.STOP.format(name=self.name))

  def delete(self):
    self._queued("delete", "--force", "--quiet")

  @property
  def nodes(self) -> list[str]:
    """TPU VMs of the queued resource, one for each slice."""
    if self.num_slices == 1:
      return [self.name]
    return [f"{self.name}-{n}" for n in range(self.num_slices)]

  def _place(self) -> list[str]:
    project = [f"--project={self.project}"] if self.project else []
    return [f"--zone={self.zone}", *project]

  def _queued(self, verb: str, *options: str) -> str:
    return self.commands.run(
      *("gcloud", "compute", "tpus", "queued-resources", verb, self.name),
      *options,
      *self._place(),
    )

  def _state(self) -> tuple[str, str]:
    """The queued resource's state and the reason that the cloud gives."""
    try:
      said = self._queued("describe", "--format=json")
    except CommandError as error:
      if not re.search("NOT_FOUND|not found", error.said):
        raise
      return _MISSING, ""
    if self.commands.dry_run:
      return "ACTIVE", ""
    state: dict[str, Any] = json.loads(said).get("state", {})
    failure = state.get("failedData", {}).get("error", {})
    return state.get("state", "UNKNOWN"), failure.get("message", "")

  def _until_active(self):
    before = ""
    while True:
      state, reason = self._state()
      if state != before:
        self.say(f"{self.name}: {state} {reason}".rstrip())
      before = state
      if state == "ACTIVE":
        return
      if state not in _WAITING:
        raise self._refused(state, reason)
      time.sleep(self.poll_s)

  def _refused(self, state: str, reason: str) -> UserError:
    later = state == "SUSPENDED" or re.search(_NO_CAPACITY, reason, re.I)
    quota = re.search(_QUOTA, reason, re.I)
    kind = Unavailable if later and not quota else UserError
    return kind(
      f"got queued resource {self.name!r} in state {state}: "
      f"{reason or 'no reason given'}; expected ACTIVE; `pod.py delete` it, "
      f"then: {self.commands.explain(reason)}"
    )

  def _node_state(self, node: str) -> str:
    said = self.commands.run(
      *("gcloud", "compute", "tpus", "tpu-vm", "describe", node),
      "--format=value(state)",
      *self._place(),
    )
    return said.strip()

  def _check_nodes(self):
    """Refuses a slice of which only a part was made."""
    for node in self.nodes:
      state = self._node_state(node)
      if state != "READY" and not self.commands.dry_run:
        raise Unavailable(
          f"got node {node!r} in state {state!r} although its queued resource "
          "is ACTIVE, expected READY: the slice is half-created; `pod.py "
          "delete` it and `pod.py create` it again"
        )

  def _on_workers(self, script: str, first_only: bool = False) -> str:
    """Runs a script on all workers, or on the first; returns what they say."""
    nodes = self.nodes[:1] if first_only else self.nodes
    worker = "0" if first_only else "all"
    return "".join(
      self._tried("ssh", node, f"--worker={worker}", f"--command={script}")
      for node in nodes
    )

  def _tried(self, verb: str, *arguments: str) -> str:
    """Runs an ssh or scp, a few times where the connection is lost."""
    command = ("gcloud", "compute", "tpus", "tpu-vm", verb, *arguments)
    for tries in range(1, _TRIES + 1):
      try:
        return self.commands.run(*command, *self._place())
      except CommandError as error:
        if not re.search(_CONNECTION, error.said) and error.code != _SSH_LOST:
          raise
        if tries == _TRIES:
          raise Unavailable(str(error)) from error
        self.say(f"{verb} was lost, tried again: {error.said}")
        time.sleep(self.poll_s)
    raise AssertionError("unreachable")

  def _refuse_second(self):
    """Refuses to end a training that another `pod.py run` has started."""
    running = [k for k, state in self._reports().items() if state == "runs"]
    if running:
      raise UserError(
        f"got run {self.name!r}, which still runs on worker "
        f"{', '.join(running)}; look at it with `pod.py status` and `pod.py "
        "logs`, end it with `pod.py stop`, which saves, or choose another "
        "--name"
      )

  def _reports(self, first_only: bool = False) -> dict[str, str]:
    """Worker -> "idle", "runs", "gone", "stopped" or its exit code."""
    script = worker_scripts.REPORT.format(name=self.name)
    return dict(
      worker_scripts.STATE.findall(self._on_workers(script, first_only))
    )

  def _print_new_lines(self):
    script = worker_scripts.NEW_LINES.format(name=self.name, line=self._line)
    lines = self._on_workers(script, first_only=True).splitlines()
    self._line += len(lines)
    for line in lines:
      self.say(line)

  def _ended(self) -> Outcome:
    """Reads how all workers ended, once worker 0 has."""
    for _ in range(_POLLS):
      reports = self._reports()
      if "runs" not in reports.values():
        break
      time.sleep(self.poll_s)
    if "stopped" in reports.values():
      return Outcome(Ending.STOPPED)
    codes = {
      worker: int(said) if said.isdecimal() else _GONE
      for worker, said in reports.items()
      if said != "runs"
    }
    outcome = outcome_of(codes, "worker")
    if outcome is None:
      words = self._on_workers(
        worker_scripts.LAST_LINES.format(name=self.name, count=12)
      )
      raise UserError(
        f"got exit code {codes[failed(codes)[0]]} from worker "
        f"{', '.join(failed(codes))}, which another start would meet again; "
        f"last words:\n{words}"
      )
    return outcome

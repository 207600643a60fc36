"""A real Slurm cluster of two nodes on this machine, for tests.

The nodes are called 127.0.0.1 and 127.0.0.2, names that every Linux machine
resolves to itself: JAX's processes look for the first node by its name.
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import time

import pytest

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credential has expired; the default is 120 s.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
# Seconds between looks at jobs that may begin; the defaults are 60 and 30.
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
KillWait=120
NodeName=127.0.0.[1-2] NodeHostname={host} NodeAddr=127.0.0.1 \
Port=[{node_port}-{last_port}] CPUs={cpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=ALL MaxTime=10 State=UP
"""


@contextlib.contextmanager
def running(folder: pathlib.Path):
  """Starts munged, slurmctld and two slurmd's; ends them afterwards.

  Only root can, with the packages slurm-wlm and munge: `make slurm`.
  """
  if os.geteuid() and "CI" not in os.environ:
    pytest.skip("needs root")
  folder.chmod(0o755)  # munged refuses a folder that others may write
  (folder / "state").mkdir()
  key = folder / "munge.key"
  key.write_bytes(os.urandom(1024))
  key.chmod(0o400)
  port = free_ports(3)
  conf = folder / "slurm.conf"
  conf.write_text(
    _CONF.format(
      host=socket.gethostname(),
      folder=folder,
      port=port,
      node_port=port + 1,
      last_port=port + 2,
      cpus=os.cpu_count(),
    )
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("SLURM_CONF", str(conf))
    try:
      _start(folder)
      yield
    finally:
      _stop(folder)


def free_ports(count: int) -> int:
  """Finds the first of `count` free ports in a row."""
  for first in range(20000, 30000, count):
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
      for port in range(first, first + count):
        stack.enter_context(socket.create_server(("127.0.0.1", port)))
      return first
  raise AssertionError("no free ports")


def slurm(*command: str) -> str:
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return done.stdout.strip()


def _start(folder: pathlib.Path):
  names = ("key-file", "socket", "pid-file", "log-file", "seed-file")
  ends = ("key", "socket", "pid", "log", "seed")
  paths = zip(names, ends, strict=True)
  slurm(
    "munged",
    "--force",
    *(f"--{name}={folder}/munge.{end}" for name, end in paths),
  )
  slurm("slurmctld")
  for node in ("127.0.0.1", "127.0.0.2"):
    slurm("slurmd", "-N", node)
  deadline = time.monotonic() + 60
  while slurm("sinfo", "-h", "-p", "main", "-o", "%D %t") != "2 idle":
    assert time.monotonic() < deadline, slurm("sinfo")
    time.sleep(0.2)


def _stop(folder: pathlib.Path):
  """By the ids in the daemons' own files."""
  for name in ("slurmd-127.0.0.1", "slurmd-127.0.0.2", "slurmctld", "munge"):
    path = folder / f"{name}.pid"
    if path.exists() and path.read_text().strip():
      with contextlib.suppress(ProcessLookupError):
        os.kill(int(path.read_text()), 15)

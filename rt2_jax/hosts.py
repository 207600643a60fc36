"""Multi-host start-up: rendezvous of all processes before JAX starts.

If a process is missing, JAX aborts without saying which. So the processes meet
at the coordinator's address first, report missing ids, and leave the address to
JAX.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time

import jax
from jax._src import clusters  # JAX has no public name for its detection

from rt2_jax.errors import UserError

_GO = b"go"
_PROBLEM = b"got "  # as every error begins
_LONGEST_REPLY = 65536  # bytes
_RETRY_S = 0.2
_GRACE_S = 5.0  # the coordinator's clock may run behind


def join(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: int,
):
  """Waits for all processes, and initializes JAX's distributed runtime.

  Args:
    coordinator: host:port of process 0; None, as for the next two: from the
      environment (TPU pods, GKE, Slurm, Open MPI).
    num_processes: how many there are.
    process_id: which of them this is, from 0.
    timeout: seconds to wait for the others.

  Raises:
    UserError: some do not come, or one comes twice; says which. Or the
      environment names no other processes.
  """
  if None in (coordinator, num_processes, process_id):
    coordinator, num_processes, process_id = detected(
      coordinator, num_processes, process_id, timeout
    )
  call_roll(coordinator, num_processes, process_id, timeout)
  jax.distributed.initialize(
    coordinator, num_processes, process_id, initialization_timeout=timeout
  )


def detected(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: int,
) -> tuple[str, int, int]:
  """Fills in what is None from the environment; arguments as in `join`.

  Raises:
    UserError: the environment is none that JAX knows.
  """
  detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
  found = detect(coordinator, num_processes, process_id, None, None, timeout)
  names = ("--coordinator", "--num_processes", "--process_id")
  missing = [
    name for name, value in zip(names, found[:3], strict=True) if value is None
  ]
  if missing:
    raise UserError(
      f"got --multihost without {' and '.join(missing)}, expected a TPU pod, "
      "GKE, Slurm or Open MPI, which say where the other processes are; pass "
      "these flags, or start them with launch/pod.py"
    )
  return found[:3]


def call_roll(
  coordinator: str, num_processes: int, process_id: int, timeout: float
):
  """Rendezvous: returns when every process is there; see `join`."""
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdecimal():
    raise UserError(
      f"got coordinator {coordinator!r}, expected host:port of process 0, such "
      "as 'localhost:1234'"
    )
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"got process_id {process_id} of {num_processes} processes, expected 0 "
      f"to {num_processes - 1}"
    )
  deadline = time.monotonic() + timeout
  if process_id == 0:
    _gather(int(port), num_processes, timeout, deadline)
  else:
    _report(host.strip("[]"), int(port), process_id, deadline)


def _gather(port: int, num_processes: int, timeout: float, deadline: float):
  """Process 0: waits for the others and tells them how it ended."""
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_server(port))
    present: dict[int, socket.socket] = {}
    problem = ""
    while len(present) < num_processes - 1 and not problem:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection, (address, *_) = server.accept()
      except TimeoutError:
        problem = _missing(present, num_processes, timeout)
        break
      stack.enter_context(connection)
      process_id = _process_id(connection)
      if process_id is None:
        continue  # another program that tries ports
      if process_id in present or not 0 < process_id < num_processes:
        problem = (
          f"got process_id {process_id} from {address}, expected one of 1 to "
          f"{num_processes - 1} that has not come yet; give every process its "
          "own --process_id and the same --num_processes"
        )
      present[process_id] = connection
    for connection in present.values():
      with contextlib.suppress(OSError):
        connection.sendall(problem.encode() or _GO)
  if problem:
    raise UserError(problem)


def _report(host: str, port: int, process_id: int, deadline: float):
  """Tells process 0 who this is, and waits for its answer."""
  with _connect(host, port, deadline) as connection:
    connection.sendall(f"{process_id}\n".encode())
    connection.settimeout(max(deadline - time.monotonic(), 0.0) + _GRACE_S)
    try:
      reply = connection.recv(_LONGEST_REPLY)
    except OSError:
      reply = b""
  if reply.startswith(_PROBLEM):
    raise UserError(reply.decode())
  if not reply:
    raise UserError(f"process 0 at {host}:{port} ended; look at its log")
  if reply != _GO:
    raise UserError(
      f"got no rendezvous at {host}:{port}, expected process 0: the others "
      "train already, without this process, or another program has this port; "
      "start all processes again, with the same --num_processes"
    )


def _missing(present, num_processes: int, timeout: float) -> str:
  missing = sorted(set(range(1, num_processes)) - set(present))
  return (
    f"got {len(present) + 1} of {num_processes} processes within {timeout:g} "
    f"s, missing: process {', '.join(map(str, missing))}; start the missing "
    "with the same --coordinator and --num_processes, look at their logs, or "
    "raise --timeout"
  )


def _server(port: int) -> socket.socket:
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(
        ("", port), family=socket.AF_INET6, dualstack_ipv6=True
      )
    return socket.create_server(("", port))
  except OSError as error:
    if error.errno != errno.EADDRINUSE:
      raise
    raise UserError(
      f"got coordinator port {port}, which another program of this host uses, "
      "perhaps an earlier start of this training; expected a free one: end "
      "that program, or choose another port with --coordinator or "
      "JAX_COORDINATOR_PORT"
    ) from error


def _connect(host: str, port: int, deadline: float) -> socket.socket:
  while True:
    try:
      return socket.create_connection((host, port), timeout=_RETRY_S * 10)
    except OSError as error:
      if time.monotonic() > deadline:
        raise UserError(
          f"got no answer from process 0 at {host}:{port} ({error}); start it, "
          "or correct --coordinator"
        ) from error
    time.sleep(_RETRY_S)


def _process_id(connection: socket.socket) -> int | None:
  """Reads who has connected; None for any other program."""
  connection.settimeout(_GRACE_S)
  try:
    line = connection.recv(64)
  except OSError:
    return None
  return int(line) if line.strip().isdigit() else None

"""The roll call of several processes, here in threads."""

import concurrent.futures
import socket

import pytest
from jax._src.lib import _jax

from rt2_jax import hosts
from rt2_jax.errors import UserError


@pytest.fixture
def coordinator():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def call(coordinator, ids, num_processes, timeout=20.0):
  """The outcome of each process: None or its error's message."""

  def outcome(process_id):
    try:
      hosts.call_roll(coordinator, num_processes, process_id, timeout)
    except ValueError as error:
      return str(error)
    return None

  with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
    return list(pool.map(outcome, ids))


def test_all_come(coordinator):
  assert call(coordinator, [3, 0, 2, 1], 4) == [None] * 4
  # The address is free again, for JAX.
  assert call(coordinator, [0, 1], 2) == [None] * 2


def test_the_missing_are_named_to_all_who_came(coordinator):
  outcomes = call(coordinator, [0, 2], 4, timeout=1.5)
  assert len(set(outcomes)) == 1
  assert (
    "got 2 of 4 processes within 1.5 s, missing: process 1, 3" in (outcomes[0])
  )
  assert "raise --timeout" in outcomes[0]


def test_without_process_0(coordinator):
  (message,) = call(coordinator, [1], 2, timeout=0.5)
  assert f"got no answer from process 0 at {coordinator}" in message


def test_one_that_comes_while_the_others_train(coordinator):
  """JAX has the address then, and speaks HTTP/2."""
  port = coordinator.partition(":")[2]
  service = _jax.get_distributed_runtime_service(f"[::]:{port}", 2)
  try:
    (message,) = call(coordinator, [2], 3, timeout=5)
  finally:
    service.shutdown()
  assert f"got no rendezvous at {coordinator}, expected process 0" in message


def test_one_that_comes_twice(coordinator):
  outcomes = call(coordinator, [0, 1, 1], 3, timeout=5)
  assert "got process_id 1 from" in outcomes[0]
  assert all(outcomes)


@pytest.mark.parametrize(
  ("address", "process_id", "message"),
  [
    ("localhost", 0, "coordinator 'localhost', expected host:port"),
    ("localhost:1", 2, "process_id 2 of 2 processes, expected 0 to 1"),
  ],
)
def test_wrong_values(address, process_id, message):
  with pytest.raises(ValueError, match=message):
    hosts.call_roll(address, 2, process_id, 1)


def test_a_port_in_use_is_named(coordinator):
  port = int(coordinator.partition(":")[2])
  with (
    socket.create_server(("", port)),
    pytest.raises(UserError, match=f"got coordinator port {port}, which anoth"),
  ):
    hosts.call_roll(coordinator, 2, 0, timeout=1)


def test_slurm_says_where_the_others_are(monkeypatch):
  slurm = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
  }
  for name, value in slurm.items():
    monkeypatch.setenv(name, value)
  assert hosts.detected(None, None, None, 1) == ("gpu03:61457", 8, 5)
  assert hosts.detected("a:1", None, None, 1) == ("a:1", 8, 5)


def test_without_any_cluster_the_missing_flags_are_named():
  with pytest.raises(UserError, match="without --coordinator and --process_id"):
    hosts.detected(None, 2, None, 1)

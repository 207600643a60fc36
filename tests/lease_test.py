"""A lock in an object store: held by one, lost by who is silent."""

import json
import logging
import time
import uuid

import pytest

from rt2_jax import lease, storage
from rt2_jax.errors import UserError

TIMES = {"renewed_s": 0.05, "lost_s": 0.5}


@pytest.fixture
def path():
  return storage.locate(f"memory://{uuid.uuid4().hex}/run/lock", "x")


def change(path, **fields):
  path.write_bytes(json.dumps(json.loads(path.read_bytes()) | fields).encode())


def test_a_lock_is_held_by_one_and_renewed(path):
  with lease.held(path, **TIMES):
    first = path.read_bytes()
    with (
      pytest.raises(UserError, match="another program trains now .process"),
      lease.held(path, **TIMES),
    ):
      pass
    assert path.read_bytes() != first
  assert not path.exists()
  with lease.held(path, **TIMES):
    assert path.exists()


@pytest.mark.parametrize(
  "holder, waits",
  [
    ({"pid": 2**22 + 1}, False),  # it has ended on this machine
    ({"started": 1.0}, False),  # another process has its number now
    ({"host": "elsewhere", "pid": 2**22 + 1}, True),
  ],
)
def test_a_dead_holders_lock_is_taken_over(path, holder, waits, caplog):
  path.write_bytes(json.dumps(lease._identity() | holder).encode())
  start = time.monotonic()
  with caplog.at_level(logging.WARNING), lease.held(path, **TIMES):
    assert json.loads(path.read_bytes())["host"] == lease._identity()["host"]
  assert (time.monotonic() - start >= TIMES["lost_s"]) == waits
  assert ("waits up to" in caplog.text) == waits


def test_who_has_lost_the_lock_ends(path, monkeypatch, caplog):
  ended = []
  monkeypatch.setattr(lease.os, "_exit", ended.append)
  with lease.held(path, **TIMES):
    change(path, token="another")
    deadline = time.monotonic() + 5
    while not ended and time.monotonic() < deadline:
      time.sleep(0.01)
  assert ended[0] == 1 and "was taken over by process" in caplog.text
  assert not path.exists() or json.loads(path.read_bytes())


def test_a_lock_that_is_no_json_is_free(path):
  path.write_bytes(b"half")
  with lease.held(path, **TIMES):
    assert json.loads(path.read_bytes())["pid"]

"""A lock in an object store: its holder renews it, or loses it.

A store knows no locks that end with a process. So the holder writes the object
again and again; one that nobody renews is taken over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil

from rt2_jax import storage
from rt2_jax.errors import UserError

_LOG = logging.getLogger(__name__)

_RENEWED_S = 6.0  # between two writes of the holder
# Without a write. Other processes of a run wait meanwhile: gloo for 30 s.
_LOST_S = 22.0
_LOOK_S = 0.5
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def held(
  path: storage.Url, renewed_s: float = _RENEWED_S, lost_s: float = _LOST_S
) -> Iterator[None]:
  """Holds a lock; ends this process if another one has taken it over.

  A process that was stopped for longer than `lost_s` must not write any more:
  the other one does.

  Args:
    path: of the lock; nothing else lies there.
    renewed_s: seconds between two writes of the holder.
    lost_s: seconds without one, after which the lock is free.

  Raises:
    UserError: another process holds it.
  """
  mine = _identity()
  _take(path, mine, lost_s)
  ended = threading.Event()
  renewing = threading.Thread(
    target=_renew, args=(path, mine, renewed_s, ended), daemon=True
  )
  renewing.start()
  try:
    yield
  finally:
    ended.set()
    renewing.join()
    if _holder(path).get("token") == mine["token"]:
      path.unlink(missing_ok=True)


def _take(path: storage.Url, mine: dict[str, Any], lost_s: float):
  """Writes the lock if it is free; waits where that must be found out."""
  holder = _holder(path)
  if not holder and _create(path, mine):
    return
  holder = holder or _holder(path)
  if not _is_dead(holder):
    where = f"process {holder.get('pid')} on {holder.get('host')}"
    _LOG.warning(
      "%s is held by %s: waits up to %.0f s for a sign of life",
      *(path, where, lost_s),
    )
    deadline = time.monotonic() + lost_s
    while time.monotonic() < deadline:
      time.sleep(_LOOK_S)
      now = _holder(path)
      if now and now != holder:
        raise UserError(
          f"got --workdir={path.parent}, in which another program trains now "
          f"({where}); wait for it, end it, or use another --workdir"
        )
      if not now:  # it has ended
        break
  _write(path, mine)


def _create(path: storage.Url, mine: dict[str, Any]) -> bool:
  """Writes the lock where there is none; tells whether this came first."""
  data = json.dumps(mine).encode()
  try:
    with storage.named_in_errors(path, "--workdir"):
      storage.file_system(path).pipe_file(str(path), data, mode="create")
  except UserError as error:
    if isinstance(error.__cause__, FileExistsError):
      return False
    raise
  return True


def _renew(
  path: storage.Url,
  mine: dict[str, Any],
  renewed_s: float,
  ended: threading.Event,
):
  while not ended.wait(renewed_s):
    try:
      holder = _holder(path)
      if holder and holder.get("token") != mine["token"]:
        _LOG.error(
          "%s was taken over by process %s on %s, while this one was stopped "
          "or could not reach it: ends, and writes nothing more",
          *(path, holder.get("pid"), holder.get("host")),
        )
        os._exit(1)
      _write(path, mine)
    except UserError as error:
      _LOG.warning("the lock was not renewed: %s", error)


def _write(path: storage.Url, mine: dict[str, Any]):
  mine["renewed"] = time.time()
  path.write_bytes(json.dumps(mine).encode())


def _holder(path: storage.Url) -> dict[str, Any]:
  """Reads who holds the lock; {} for nobody."""
  try:
    return json.loads(path.read_bytes())
  except (FileNotFoundError, json.JSONDecodeError):
    return {}


def _identity() -> dict[str, Any]:
  return {
    "token": uuid.uuid4().hex,
    "host": socket.gethostname(),
    "boot": _BOOT.read_text().strip() if _BOOT.exists() else "",
    "pid": os.getpid(),
    "started": psutil.Process().create_time(),
    "renewed": time.time(),
  }


def _is_dead(holder: dict[str, Any]) -> bool:
  """Tells whether the holder was a process of this machine that has ended."""
  here = _identity()
  if any(holder.get(key) != here[key] for key in ("host", "boot")):
    return False
  try:
    process = psutil.Process(holder["pid"])
    if process.status() == psutil.STATUS_ZOMBIE:
      return True
    return process.create_time() != holder["started"]
  except (psutil.NoSuchProcess, KeyError):
    return True

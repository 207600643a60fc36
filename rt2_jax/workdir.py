"""A run's folder: whose it is, and its config.json."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from rt2_jax import checkpoint, consensus, differences, lease, storage
from rt2_jax.errors import UserError
from rt2_jax.train_config import with_defaults

_LOG = logging.getLogger(__name__)

# Fields that may change when a run goes on, wherever they stand: batches and
# model stay the same. The first two change the learning rates to come. Files
# may lie elsewhere: `resume` compares what is in them.
FREE_FIELDS = (
  "num_steps",
  "end_learning_rate",
  "remat",
  "topology",
  "mesh",
  "microbatches",
  "evaluation",
  "loader",
  "log_every",
  "checkpoint_every",
  "checkpoint_minutes",
  "keep_checkpoints",
  "keep_best",
  "divergence",
  "watchdog",
  "tracking",
  "path",
  "statistics",
  "tokenizer_file",
)


def check(workdir: storage.Path, fields: Mapping[str, Any]) -> bool:
  """Compares a config with the one that a workdir was claimed for.

  A field that one of them leaves out equals its default.

  Args:
    workdir: of the run; need not exist.
    fields: of the config.

  Returns:
    Whether config.json must be written: there is none, one in which fields
    differ that may change, or one of a run that saved no checkpoint, so that
    nothing belongs to it.

  Raises:
    UserError: the workdir belongs to another experiment.
  """
  path = workdir / "config.json"
  if not path.exists():
    return True
  problem = _difference(path, fields)
  if not problem:
    stored = json.loads(path.read_bytes())
    return _completed(stored) != _completed(fields)
  if checkpoint.Checkpoints(workdir / "checkpoints").latest_step() is not None:
    raise UserError(problem)
  _LOG.warning(
    "%s is written anew: the run that wrote it saved no checkpoint (%s)",
    path,
    problem,
  )
  return True


@contextlib.contextmanager
def held(workdir: storage.Path, fields: Mapping[str, Any]) -> Iterator[None]:
  """Holds a workdir while a run goes on, and writes its config.json.

  Process 0 does it for all. Args as `check`.

  Raises:
    UserError: the workdir belongs to another experiment, another program
      trains there now, or it cannot be written.
  """
  with contextlib.ExitStack() as stack:
    with consensus.together():
      if jax.process_index() == 0:
        storage.output_folder(workdir, "--workdir")
        stack.enter_context(_locked(workdir / "lock"))
        if check(workdir, fields):
          text = json.dumps(fields, indent=2, sort_keys=True)
          storage.write(workdir / "config.json", text)
    yield


def _difference(path: storage.Path, fields: Mapping[str, Any]) -> str:
  """Says what a config.json forbids of these fields; "" for nothing."""
  content = path.read_bytes()
  try:
    stored = json.loads(content)
  except ValueError:
    return (
      f"got {path} of {len(content)} bytes, which is no JSON: a crash cut it "
      "off; delete it to go on (each checkpoint keeps its own config), or use "
      "another --workdir"
    )
  old, new = _completed(stored), _completed(fields)
  found = list(differences.differing(old, new, "config", FREE_FIELDS))
  if not found:
    return ""
  return (
    f"got a config that differs from the one in {path}: "
    f"{'; '.join(found[:5])}; use another --workdir or restore these values"
  )


def _completed(fields: Mapping[str, Any]) -> Any:
  return differences.to_json(with_defaults(fields))


@contextlib.contextmanager
def _locked(path: storage.Path) -> Iterator[None]:
  """Locks a file; the lock ends with the process, however that ends."""
  with contextlib.ExitStack() as stack:
    if isinstance(path, storage.Url):
      stack.enter_context(lease.held(path))
      yield
      return
    with storage.named_in_errors(path):
      file = stack.enter_context(path.open("a+"))
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"got --workdir={path.parent}, in which another program trains now "
        f"({path.read_text().strip()}); wait for it, end it, or use another "
        "--workdir"
      ) from error
    except OSError:
      _LOG.warning("%s cannot be locked on this file system", path)
    file.truncate(0)
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, {began}\n")
    file.flush()
    yield

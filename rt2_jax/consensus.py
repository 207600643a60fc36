"""Several processes compare what they hold, before the first step.

A process that differs from the others would train on silently, hang or abort
without a reason. With one process nothing is sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rt2_jax import differences, storage
from rt2_jax.errors import UserError

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_NAMED = 5  # differences that an error shows
_LOOK_S = 0.5  # between looks for another process's file


def gather(text: str) -> list[str]:
  """Returns every process's text, by process id."""
  if jax.process_count() == 1:
    return [text]
  data = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(max(1, *lengths), np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    bytes(np.asarray(row[:length], np.uint8)).decode()
    for row, length in zip(rows, lengths, strict=True)
  ]


def problems(problem: str) -> str:
  """Joins what went wrong on any process; "" when nothing did.

  Args:
    problem: what went wrong on this process, or "".
  """
  found: dict[str, list[int]] = {}
  for process, text in enumerate(gather(problem)):
    if text:
      found.setdefault(text, []).append(process)
  if jax.process_count() == 1:
    return problem
  return "; ".join(f"{_ids(ids)}: {text}" for text, ids in found.items())


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Lets an exception in the body end every process, so that none waits.

  The body must hold no computation that spans processes.

  Raises:
    UserError: the body raised one, here or elsewhere; says on which process.
  """
  raised = None
  try:
    yield
  except Exception as error:
    raised = error
  mine = isinstance(raised, UserError)
  text = str(raised) if mine else f"{type(raised).__name__}: {raised}"
  problem = problems(text if raised else "")
  if raised and (jax.process_count() == 1 or not mine):
    raise raised
  if problem:
    raise UserError(problem)


def check_equal(values: Mapping[str, Any]):
  """Compares JSON values over all processes.

  Raises:
    UserError: some differ; names them, with the processes on each side.
  """
  mine = differences.to_json(dict(values))
  held = [json.loads(text) for text in gather(json.dumps(mine))]
  found: dict[str, dict[str, list[int]]] = {}
  for other in held:
    for place, _, _ in differences.places(held[0], other, ""):
      found.setdefault(place.lstrip("."), {})
  for place, sides in found.items():
    for process, value in enumerate(held):
      shown = f"{_at(value, place)!r:.80}"
      sides.setdefault(shown, []).append(process)
  if found:
    listed = "; ".join(
      f"{place} is {_sides(sides)}"
      for place, sides in list(found.items())[:_NAMED]
    )
    more = f"; and {len(found) - _NAMED} more" * (len(found) > _NAMED)
    raise UserError(
      f"got processes that differ: {listed}{more}; expected the same config, "
      "code, data and tokenizer everywhere: start all of them with one command"
    )


def check_shared(folder: storage.Path, timeout: float = 20.0):
  """Checks that all processes see one folder: process 0 writes, all read.

  Nothing is left behind.

  Args:
    folder: need not exist yet.
    timeout: seconds that the others look for process 0's file.

  Raises:
    UserError: some do not see it; or process 0 cannot write there.
  """
  if jax.process_count() == 1:
    return
  token = gather(secrets.token_hex(8))[0]
  path = folder / f".shared-{token}"
  first = jax.process_index() == 0
  made = _missing_parents(path) if first else []
  try:
    with together():
      if first:
        storage.output_folder(folder, "--workdir")
        storage.write(path, token)
    problem = "" if _appears(path, token, timeout) else "does not see it"
    problem = problems(problem)
  finally:
    if first:
      path.unlink(missing_ok=True)
      for parent in made if problem else ():
        with contextlib.suppress(OSError):
          parent.rmdir()
  if problem:
    raise UserError(
      f"got --workdir={folder}, in which process 0 wrote a file that not every "
      f"process sees ({problem}); expected one folder that all of them share, "
      "in a bucket or on a disk that is mounted everywhere"
    )


def code() -> dict[str, str]:
  """Returns a hash of this package's source, and the versions below it."""
  root = pathlib.Path(__file__).parent
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    content = path.read_bytes()
    digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
    digest.update(content)
  versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
  return {"rt2_jax": digest.hexdigest()[:16], **versions}


def _appears(path: storage.Path, token: str, timeout: float) -> bool:
  """Tells whether another process's file is seen; a network disk may lag."""
  deadline = time.monotonic() + timeout
  while True:
    with contextlib.suppress(OSError):
      if path.read_text() == token:
        return True
    if time.monotonic() > deadline:
      return False
    time.sleep(_LOOK_S)


def _missing_parents(path: storage.Path) -> list[pathlib.Path]:
  """Folders above a path that are not there yet, the lowest first."""
  if isinstance(path, storage.Url):
    return []  # an object store has no folders
  return [parent for parent in path.parents if not parent.exists()]


def _at(value: Any, place: str) -> Any:
  """Looks a dotted place up; a key may itself hold dots."""
  if not place:
    return value
  if not isinstance(value, dict):
    return None
  for key in value:
    if place == key or place.startswith(f"{key}."):
      return _at(value[key], place[len(key) + 1 :])
  return None


def _sides(sides: Mapping[str, list[int]]) -> str:
  return ", ".join(f"{value} on {_ids(ids)}" for value, ids in sides.items())


def _ids(ids: list[int]) -> str:
  noun = "process" if len(ids) == 1 else "processes"
  return f"{noun} {', '.join(map(str, ids))}"

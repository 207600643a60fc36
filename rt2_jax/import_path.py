"""Import paths: names of Python objects such as "my_lab.sim:benchmark".

A dataset, a benchmark or a policy of another package is named this way. The
name stays a string, so that configs, checkpoints and other processes can hold
it.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from rt2_jax.errors import UserError, unknown_name

# A module and an attribute; not a URL, a Windows path or a file.
_PATTERN = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")


def is_import_path(name: str) -> bool:
  """Tells an import path from a plain name, a folder or a URL."""
  return bool(_PATTERN.fullmatch(name))


def load(path: str, what: str, kind: type | tuple[type, ...] = object) -> Any:
  """Imports the module of an import path and returns its attribute.

  Args:
    path: "module:attribute"; both may have dots.
    what: the flag or field that holds the path, for errors.
    kind: the type that the object must have.

  Raises:
    UserError: not an import path, a missing module, a missing attribute, or an
      object of another type. An error inside the module keeps its traceback.
  """
  match = _PATTERN.fullmatch(path)
  if not match:
    raise UserError(
      f"got {path!r} for {what}, expected module:attribute, such as "
      "my_lab.sim:benchmark"
    )
  found = _import(match[1], path, what)
  for name in match[2].split("."):
    if not hasattr(found, name):
      where = f"attribute of {path.partition(':')[0]!r} in {what}"
      raise unknown_name(where, name, _public(found))
    found = getattr(found, name)
  if not isinstance(found, kind):
    kinds = kind if isinstance(kind, tuple) else (kind,)
    raise UserError(
      f"got {path!r} for {what}, which is of type {type(found).__name__}, "
      f"expected {' or '.join(k.__name__ for k in kinds)}"
    )
  return found


def _import(module: str, path: str, what: str) -> Any:
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    parents = module.split(".")
    prefixes = {".".join(parents[: i + 1]) for i in range(len(parents))}
    if error.name not in prefixes:  # the module exists and misses another one
      raise
    raise UserError(
      f"got {path!r} for {what}, whose module {error.name!r} is not found, "
      "expected one that Python can import; install it, or name its folder in "
      "PYTHONPATH"
    ) from error


def _public(owner: Any) -> list[str]:
  return [name for name in vars(owner) if not name.startswith("_")]

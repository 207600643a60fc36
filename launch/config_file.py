"""Reads config files as they are, also without `ml_collections`.

A config file needs `ConfigDict` alone, for which a dictionary with attributes
stands in. All else of `ml_collections` is for flags.
"""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import re
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from rt2_jax import shipped
from rt2_jax.errors import UserError


def read(name: str) -> dict[str, Any]:
  """Reads the fields of "configs/x.py" or "configs/x.py:argument".

  Raises:
    UserError: the file does not take this argument, or it is empty.
  """
  known = "ml_collections" in sys.modules  # this one, at the second call
  if not known and importlib.util.find_spec("ml_collections") is None:
    sys.modules["ml_collections"] = stand_in()
  path, colon, argument = name.partition(":")
  if colon and not argument:
    raise UserError(
      f"got --config={name}, expected an argument behind the colon, or no "
      "colon; a shell's variable may be unset"
    )
  get_config = runpy.run_path(find(path))["get_config"]
  arguments = [argument] if argument else []
  _check_count(path, get_config, arguments)
  try:
    config = get_config(*arguments)
  except ValueError as error:
    raise UserError(f"--config={name}: {error}") from error
  return config.to_dict()


def _check_count(path: str, get_config: Callable, arguments: Sequence[str]):
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    expected = "no argument" if arguments else "FILE:ARGUMENT"
    raise UserError(
      f"got --config={':'.join([path, *arguments])}, expected {expected}: "
      f"get_config is given {len(arguments)} ({error})"
    ) from error


def find(path: str) -> str:
  """Finds a config file: a path, or the name of one that ships, such as "x"."""
  if re.fullmatch(r"\w+", path) and not pathlib.Path(path).exists():
    path = f"configs/{path}.py"
  return shipped.find(path)


def stand_in() -> types.ModuleType:
  """Makes the module that config files import."""
  module = types.ModuleType("ml_collections")
  module.ConfigDict = Fields
  return module


class Fields(dict):
  """A `ConfigDict` as far as config files use one."""

  def __init__(self, fields: dict[str, Any]):
    super().__init__()
    self.update(fields)

  def __getattr__(self, name: str) -> Any:
    try:
      return self[name]
    except KeyError:
      raise AttributeError(name) from None

  def __setattr__(self, name: str, value: Any):
    self[name] = value

  def __setitem__(self, name: str, value: Any):
    plain = isinstance(value, dict) and not isinstance(value, Fields)
    super().__setitem__(name, Fields(value) if plain else value)

  def update(self, *others: dict[str, Any], **more: Any):
    for fields in (*others, more):
      for name, value in fields.items():
        self[name] = value

  def to_dict(self) -> dict[str, Any]:
    return {
      name: value.to_dict() if isinstance(value, Fields) else value
      for name, value in self.items()
    }

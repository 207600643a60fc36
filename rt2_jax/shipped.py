"""Finds the files that ship with this package: programs, configs, small data.

In a clone they lie beside `rt2_jax/`. A wheel holds them inside it, so that
nobody's `import data` or `import configs` finds them.
"""

from __future__ import annotations

import os
import pathlib

_PACKAGE = pathlib.Path(__file__).parent
# setup.py fills it when it builds a wheel.
_IN_WHEEL = _PACKAGE / "_shipped"

# A checkpoint, which is read as a whole.
_ROBOT = "data/mini_robot"

# Holds launch/, configs/ and data/.
FOLDER = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent


def find(path: str | os.PathLike) -> str:
  """Finds a file to read, such as "data/small_tokenizer.model".

  Or the finished robot, "data/mini_robot".

  Returns:
    the path itself where something lies there, or where nothing of that name
    ships; otherwise what ships.
  """
  path = os.fspath(path)
  ours = FOLDER / path
  ships = ours.is_file() or path.rstrip("/") == _ROBOT
  return str(ours) if ships and not os.path.exists(path) else path


def install_command(extra: str) -> str:
  """Writes the shell command that installs the packages of an extra."""
  if FOLDER == _IN_WHEEL:
    return f"pip install 'rt2-jax[{extra}]'"
  return f"pip install -e '.[{extra}]'"

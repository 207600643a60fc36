"""Starts the programs of launch/ and data/ as commands.

`rt2-train` is `python launch/train.py`, wherever it is started: setup.py
installs one command for each program, and all of them call `main`.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import re
import runpy
import sys

from rt2_jax import shipped

_FOLDERS = ("launch", "data")
_FLAGFILE = re.compile(r"(--?flagfile=)(.+)")


def main():
  """Runs the program that the command's own name says.

  A --flagfile that ships with this package is found from anywhere.
  """
  name = pathlib.Path(sys.argv[0]).stem.removeprefix("rt2-").replace("-", "_")
  # In this process alone, and in those that it starts.
  sys.path.insert(0, str(shipped.FOLDER))
  sys.argv[1:] = [_with_shipped_flagfile(argument) for argument in sys.argv[1:]]
  folder = next(
    f for f in _FOLDERS if (shipped.FOLDER / f / f"{name}.py").is_file()
  )
  try:
    runpy.run_module(f"{folder}.{name}", run_name="__main__", alter_sys=True)
  except ModuleNotFoundError as error:
    package = (error.name or "").partition(".")[0]
    extra = extra_of(package)
    if extra is None:
      raise
    sys.exit(
      f"got no package {package!r}, expected those of the extra [{extra}]; run "
      f"`{shipped.install_command(extra)}`"
    )


def extra_of(package: str) -> str | None:
  """Names the first extra of this distribution that installs a module."""
  name = package.replace("_", "-").lower()
  for line in importlib.metadata.requires("rt2_jax") or ():
    needed = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", line)
    # The module `orbax` is in the distribution `orbax-checkpoint`.
    if needed and f"{needed[1].lower()}-".startswith(f"{name}-"):
      return needed[2]
  return None


def _with_shipped_flagfile(argument: str) -> str:
  match = _FLAGFILE.fullmatch(argument)
  return match[1] + shipped.find(match[2]) if match else argument

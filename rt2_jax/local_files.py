"""Where programs write, and how: local folders, whole files or none.

A file that is read again later is written beside its place and then renamed, so
that a crash or a full disk leaves the old file or none, never a part of one.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from rt2_jax.errors import UserError

# "gs://bucket/x", and "gs:/bucket/x", which pathlib makes of it.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def local_path(path: str | pathlib.Path, name: str) -> pathlib.Path:
  """Expands `~` and `$VAR` in a path on this machine.

  Args:
    path: as a person wrote it.
    name: of the flag or field that holds it, for the error.

  Raises:
    UserError: an empty path, a URL such as `gs://…`, an unknown variable or an
      unknown user's home.
  """
  text = str(path)
  url = _URL.match(text)
  if url:
    hint = f", such as /{url[2]}" * (url[1].lower() == "file")
    raise UserError(
      f"got {name} = {text!r}, expected a folder or file on this machine, or "
      f"on a disk that is mounted{hint}; {url[1]}:// cannot be written yet"
    )
  expanded = os.path.expanduser(os.path.expandvars(text))
  unknown = _VARIABLE.search(expanded)
  if unknown:
    raise UserError(
      f"got {name} = {text!r}, expected a path whose variables are set: "
      f"{unknown[0]} is not; set it, or write the path out"
    )
  if not expanded.strip() or "\0" in expanded:
    raise UserError(f"got {name} = {text!r}, expected a path")
  if expanded.startswith("~"):
    raise UserError(
      f"got {name} = {text!r}, expected the home of a user of this machine; "
      "write the path out"
    )
  return pathlib.Path(expanded)


def output_folder(path: str | pathlib.Path, name: str) -> pathlib.Path:
  """Creates a folder, with its parents; arguments as in `local_path`.

  Raises:
    UserError: see `local_path`; or the folder cannot be created.
  """
  folder = local_path(path, name)
  with named_in_errors(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
  return folder


def write(path: pathlib.Path, content: str | bytes):
  """Writes a whole file, or leaves what was there.

  Raises:
    UserError: the folder cannot be written, or the disk is full.
  """
  data = content.encode() if isinstance(content, str) else content
  unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
  with named_in_errors(path):
    try:
      with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(unfinished, path)
    except BaseException:
      with contextlib.suppress(OSError):
        unfinished.unlink()
      raise


@contextlib.contextmanager
def named_in_errors(path: pathlib.Path, name: str = "") -> Iterator[None]:
  """Turns the system's refusal to write into a UserError with the path."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"got {name + ' = ' if name else ''}{str(path)!r}, which cannot be "
      f"written: {error.strerror or error}; expected a folder with room and "
      "the right to write; free some, or choose another place"
    ) from error

"""Reads log files that other processes are writing."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterator


class Follower:
  """Yields a growing file's whole lines, each once."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._position = 0
    self._rest = b""

  def skip_to_end(self):
    """Leaves out what has been written so far."""
    self._position = self._path.stat().st_size if self._path.exists() else 0
    self._rest = b""

  def new_lines(self) -> Iterator[str]:
    """Yields the lines that are complete since the last call."""
    if not self._path.exists():
      return
    with self._path.open("rb") as file:
      file.seek(self._position)
      data = file.read()
    self._position += len(data)
    *lines, self._rest = (self._rest + data).split(b"\n")
    for line in lines:
      yield line.decode(errors="replace")


def last(path: pathlib.Path, count: int) -> str:
  """Returns the last lines that are not empty; "" where there is no file."""
  if not path.exists():
    return ""
  with path.open(errors="replace") as file:
    lines = (line.rstrip() for line in file)
    return "\n".join(collections.deque(filter(None, lines), count))

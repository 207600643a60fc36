"""Local copies, for libraries that know no other files.

Transformers and TFDS read and write folders on this machine only.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from rt2_jax import storage


@contextlib.contextmanager
def of(path: storage.Path) -> Iterator[pathlib.Path]:
  """Yields a file or folder on this machine, for libraries that know no other.

  An object store's is copied to a temporary folder.
  """
  if not isinstance(path, storage.Url):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / path.name
    source = f"{path}/" if path.is_dir() else str(path)
    with storage.named_in_errors(path, verb="read"):
      storage.file_system(path).get(source, str(copy), recursive=True)
    yield copy


@contextlib.contextmanager
def made_for(target: storage.Path) -> Iterator[pathlib.Path]:
  """Yields a place on this machine, for libraries that write to no other.

  What was made there is `target`, or is copied there at the end.
  """
  if not isinstance(target, storage.Url):
    yield target
    return
  with tempfile.TemporaryDirectory() as folder:
    made = pathlib.Path(folder) / target.name
    yield made
    publish(made, target)


def publish(made: pathlib.Path, target: storage.Path):
  """Gives a local file or folder its place, where nothing lies."""
  with storage.named_in_errors(target):
    if isinstance(target, storage.Url):
      source = f"{made}/" if made.is_dir() else str(made)
      storage.file_system(target).put(source, str(target), recursive=True)
    else:
      made.replace(target)

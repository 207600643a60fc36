"""A folder of kept indexes: one small file per shard, compared when loaded.

An index that was made in another way is not used, and one whose shard has
changed is refused.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import logging
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from rt2_jax import storage
from rt2_jax.byte_ranges import Request, Storage, open_storage
from rt2_jax.errors import UserError

_LOG = logging.getLogger(__name__)

Columns = dict[str, np.ndarray]

_FORMAT = 5  # raise it when the columns of an index mean something else
_END = 2**16  # bytes of a shard's beginning and end that are compared
_AT_ONCE = 64  # shards whose ends are read together
SUMMARY = ("num_records", "damaged")


def to_column(texts: Iterable[str]) -> np.ndarray:
  """Texts as a column of an index, uint8[n]."""
  return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def from_column(column: np.ndarray) -> list[str]:
  """Inverts `to_column`."""
  return json.loads(column.tobytes())


def fingerprint(columns: Iterable[np.ndarray | Sequence[str]]) -> str:
  """Hashes an index's columns, in their order, to 16 hex digits.

  Folders are no part of it: data may move.
  """
  digest = hashlib.sha256()
  for column in columns:
    array = column if isinstance(column, np.ndarray) else to_column(column)
    digest.update(f"{array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()[:16]


class Identity(NamedTuple):
  """Tells a shard from another of its name.

  Attributes:
    size: in bytes.
    fingerprint: crc32c of its first and last 64 kB. The end holds the last
      record's checksum, so that no other record can stand in for it.
  """

  size: int
  fingerprint: int

  def __str__(self) -> str:
    return f"{self.size} bytes with fingerprint {self.fingerprint:08x}"


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Makes the index of a shard.

  Attributes:
    index_shard: a module's function `(storage, path, *arguments) -> Columns`.
    arguments: what it is called with.
    name: JSON values. Indexes with other names are kept side by side.
    depends: what else the columns depend on, JSON values by name, such as the
      hash of a function. An index that was made with others is built again.
  """

  index_shard: Callable[..., Columns]
  arguments: Sequence[Any]
  name: Sequence[Any]
  depends: Mapping[str, Any]

  @property
  def slot(self) -> str:
    """Part of the name of a kept index."""
    function = f"{self.index_shard.__module__}.{self.index_shard.__qualname__}"
    text = json.dumps([function, *self.name], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @property
  def ingredients(self) -> dict[str, str]:
    """`depends` and this file's own, as texts to compare."""
    python = ".".join(map(str, sys.version_info[:2]))
    own = {"index format": _FORMAT, "Python": python}
    return {
      name: json.dumps(value, sort_keys=True)
      for name, value in {**own, **self.depends}.items()
    }


class KeptIndexes:
  """The folder of a recipe's indexes, one file per shard."""

  def __init__(
    self,
    folder: str | os.PathLike | None,
    recipe: Recipe,
    paths: Sequence[str],
  ):
    """
    Args:
      folder: None keeps nothing.
      recipe: how a shard is indexed.
      paths: the shards.

    Raises:
      UserError: see `storage.locate`.
    """
    if folder is not None:
      folder = storage.locate(folder, "config.loader.index_folder")
    self.folder = folder
    self.recipe = recipe
    self.paths = paths
    self.storage = open_storage(paths[0])
    self._identities = list(_identify(self.storage, paths))
    _report_copies(paths, self._identities)
    self._files = [_index_path(folder, path, recipe.slot) for path in paths]
    self._built: dict[int, Columns] = {}
    self._said = False  # that kept indexes were made in another way

  def size(self, numbers: Sequence[int]) -> int:
    """Bytes of some of the shards."""
    return sum(self._identities[i].size for i in numbers)

  def load(self, numbers: Sequence[int]) -> list[Columns | None]:
    """Summarizes the kept indexes that were made in the same way.

    Args:
      numbers: of the shards.

    Returns:
      The columns of `summary`, None where an index is missing or was made in
      another way.

    Raises:
      UserError: another shard was indexed.
    """
    there = self._there()
    kept = [i for i in numbers if str(self._files[i]) in there]
    # At once, for the sake of latency.
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as threads:
      summaries = threads.map(lambda i: self._load(i, SUMMARY), kept)
      loaded = dict(zip(kept, summaries, strict=True))
    changes = [changed for _, changed in loaded.values() if changed]
    found = [loaded[i][0] if i in loaded else None for i in numbers]
    if changes and not self._said:
      self._said = True
      _LOG.warning(
        "builds %d of %d kept indexes in %s again, because of another %s",
        len(changes),
        len(found),
        self.folder,
        ", ".join(sorted(set().union(*changes))),
      )
    return found

  def _there(self) -> set[str]:
    """Lists the files of the folder, once for all shards."""
    if self.folder is None:
      return set()
    return set(open_storage(str(self.folder)).names(str(self.folder)))

  def read(self, i: int) -> Columns:
    """Reads all columns of a shard's index, once.

    Raises:
      UserError: the file is another one than `load` saw.
    """
    if i in self._built:
      return self._built.pop(i)
    columns, changed = self._load(i)
    if columns is None:
      raise UserError(
        f"got {self._files[i]}, which another program changed while it was "
        f"read ({', '.join(changed)}); start again"
      )
    return columns

  def _load(
    self, i: int, names: Sequence[str] = ()
  ) -> tuple[Columns | None, list[str]]:
    identity = self._identities[i]
    return _load(self._files[i], self.paths[i], identity, self.recipe, names)

  def save(self, i: int, columns: Columns):
    """Writes an index whole: a file with the name is complete.

    Without a folder the columns stay in memory until they are read.

    Raises:
      UserError: the folder cannot be written.
    """
    path = self._files[i]
    if path is None:
      self._built[i] = columns
      return
    try:
      storage.output_folder(self.folder, "config.loader.index_folder")
      storage.write(path, self._to_bytes(i, columns))
    except UserError as error:
      raise UserError(
        f"{error}; config.loader.index_folder = '' keeps no index"
      ) from error

  def _to_bytes(self, i: int, columns: Columns) -> bytes:
    recipe = json.dumps(self.recipe.ingredients).encode()
    own = {
      "shard": np.asarray(self._identities[i], np.int64),
      "recipe": np.frombuffer(recipe, np.uint8),
    }
    file = io.BytesIO()
    np.savez(file, **own, **columns)
    return file.getvalue()


def summary(columns: Columns) -> Columns:
  """Picks the columns that tell whether a shard is whole."""
  return {name: columns[name] for name in SUMMARY}


def _load(
  index_path: storage.Path,
  path: str,
  shard: Identity,
  recipe: Recipe,
  names: Sequence[str],
) -> tuple[Columns | None, list[str]]:
  """Loads columns of a kept index; or returns None and what has changed.

  Args:
    index_path: the kept index.
    path: its shard.
    shard: as it is now.
    recipe: as it is now.
    names: of the columns; none for all of them.

  Raises:
    UserError: another shard was indexed.
  """
  try:
    with (
      storage.named_in_errors(index_path, verb="read"),
      index_path.open("rb") as opened,
      np.load(opened, allow_pickle=False) as file,
    ):
      wanted = {*names, "recipe", "shard"} if names else file.files
      columns = {name: file[name] for name in wanted}
    made = json.loads(columns.pop("recipe").tobytes())
    indexed = Identity(*columns.pop("shard").tolist())
  except UserError:
    raise
  except (zipfile.BadZipFile, ValueError, LookupError, EOFError, TypeError):
    return None, ["file, which is cut off or damaged"]
  now = recipe.ingredients
  changed = [k for k in {**made, **now} if made.get(k) != now.get(k)]
  if changed:
    return None, changed
  if indexed != shard:
    raise UserError(
      f"{path}: got a shard of {shard}, expected the {indexed} that was "
      f"indexed; restore the shard, or delete {index_path}"
    )
  return columns, []


def _identify(files: Storage, every: Sequence[str]) -> Iterator[Identity]:
  """Reads the ends of the shards, many at once for the sake of latency."""
  for first in range(0, len(every), _AT_ONCE):
    paths = every[first : first + _AT_ONCE]
    sizes = files.sizes(paths)
    ends = files.read(
      [
        Request(path, start, min(size, _END))
        for path, size in zip(paths, sizes, strict=True)
        for start in (0, max(0, size - _END))
      ]
    )
    for size, start, end in zip(sizes, ends[::2], ends[1::2], strict=True):
      yield Identity(size, google_crc32c.value(start + end))


def _report_copies(paths: Sequence[str], identities: Sequence[Identity]):
  """Warns of shards with the same bytes: one may have been copied wrongly.

  They can be meant: lines that follow each other twice are dealt to two shards.
  """
  known: dict[Identity, str] = {}
  for path, identity in zip(paths, identities, strict=True):
    if identity.size and identity in known:
      _LOG.warning(
        "%s: got the same %s as %s has; if that is not meant, copy it again",
        path,
        identity,
        known[identity],
      )
    known[identity] = path


def _index_path(
  folder: storage.Path | None, path: str, slot: str
) -> storage.Path | None:
  if folder is None:
    return None
  # Shards of one name may lie in many folders.
  place = hashlib.sha256(os.path.dirname(path).encode()).hexdigest()[:8]
  return folder / f"{os.path.basename(path)}-{place}-{slot}.npz"

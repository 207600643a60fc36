"""Indexes of shards: built in parallel, one small file each, checked.

What an index holds is the caller's: a dictionary of arrays per shard, of which
`damaged` lists what cannot be read. This file builds the missing ones, keeps
them in a folder, and refuses one whose shard has changed. A build that was
interrupted goes on with what is missing.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from tqdm import tqdm

from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.storage import Request, Storage, open_storage

Columns = dict[str, np.ndarray]

_FORMAT = 4  # raise it when the columns of an index change
_SMALL = 256 * 2**20  # bytes that one process indexes sooner than two start
_END = 2**16  # bytes of a shard's beginning and end that are compared
_AT_ONCE = 64  # shards whose ends are read together
_NAMED = 3  # problems that an error shows


class Identity(NamedTuple):
  """What tells a shard from another of its name.

  Attributes:
    size: in bytes.
    fingerprint: crc32c of its first and last 64 kB. The end holds the last
      record's checksum, so that no other record can stand in for it.
  """

  size: int
  fingerprint: int

  def __str__(self) -> str:
    return f"{self.size} bytes with fingerprint {self.fingerprint:08x}"


def load_or_build(
  files: Sequence[str],
  index_shard: Callable[..., Columns],
  arguments: Sequence[Any],
  folder: str | pathlib.Path | None,
  num_workers: int | None = None,
  max_skipped: int = 0,
) -> list[Columns]:
  """The index of every shard.

  Args:
    files: paths of the shards.
    index_shard: a module's function `(storage, path, *arguments) -> Columns`.
    arguments: what else the index depends on: JSON values, or objects that
      their `sha256` tells apart.
    folder: where indexes are kept; None keeps them in memory only.
    num_workers: processes that build; default: one per CPU.
    max_skipped: damaged records that may be left out. A kept index lists its
      own, so that the examples and their order are the same after a restart.

  Raises:
    UserError: a shard is not the one that was indexed, more damage, or a
      folder that is not on this machine.
  """
  if "://" in str(folder):
    raise UserError(
      f"got config.loader.index_folder = {str(folder)!r}, expected a local "
      "folder, or one that is mounted"
    )
  storage = open_storage(files[0])
  key = _key(index_shard, arguments)
  paths = [_index_path(folder, path, key) for path in files]
  shards = list(_identify(storage, files))
  found = [_load(*each) for each in zip(paths, files, shards, strict=True)]
  if len(damaged_in(found)) > max_skipped:  # they may be repaired by now
    found = [None if damaged_in([columns]) else columns for columns in found]
  damaged = damaged_in(found)
  missing = [i for i, columns in enumerate(found) if columns is None]
  built = _build(
    [files[i] for i in missing],
    index_shard,
    arguments,
    num_workers if sum(shards[i].size for i in missing) > _SMALL else 1,
    storage,
  )
  if missing:
    built = tqdm(built, "index", len(missing), unit=" shards", disable=None)
  for i, columns in zip(missing, built, strict=True):
    damaged += damaged_in([columns])
    tolerate(damaged, max_skipped)
    _save(paths[i], columns, shards[i])
    found[i] = columns
  return found


def tolerate(problems: Sequence[str], max_skipped: int):
  """Raises a UserError that names the first problems if there are too many."""
  if len(problems) <= max_skipped:
    return
  listed = "; ".join(problems[:_NAMED])
  more = f"; and {len(problems) - _NAMED} more" * (len(problems) > _NAMED)
  raise UserError(
    f"got {len(problems)} examples that cannot be used, expected at most "
    f"config.loader.max_skipped = {max_skipped}: {listed}{more}"
  )


def to_column(texts: Iterable[str]) -> np.ndarray:
  """Texts as a column of an index, uint8[n]."""
  return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def from_column(column: np.ndarray) -> list[str]:
  """The inverse of `to_column`."""
  return json.loads(column.tobytes())


def damaged_in(shards: Iterable[Columns | None]) -> list[str]:
  """What the indexes that are there list as damaged."""
  there = [columns for columns in shards if columns is not None]
  return [line for each in there for line in from_column(each["damaged"])]


def _identify(storage: Storage, files: Sequence[str]) -> Iterator[Identity]:
  """Reads the ends of the shards, many at once for the sake of latency."""
  for first in range(0, len(files), _AT_ONCE):
    paths = files[first : first + _AT_ONCE]
    sizes = [storage.size(path) for path in paths]
    ends = storage.read(
      [
        Request(path, start, min(size, _END))
        for path, size in zip(paths, sizes, strict=True)
        for start in (0, max(0, size - _END))
      ]
    )
    for size, start, end in zip(sizes, ends[::2], ends[1::2], strict=True):
      yield Identity(size, google_crc32c.value(start + end))


def _build(files, index_shard, arguments, num_workers, storage: Storage):
  """Yields the columns of each shard, in order."""
  if num_workers == 1 or len(files) < 2:
    for path in files:
      yield index_shard(storage, path, *arguments)
    return
  # Not forked: JAX and TensorFlow hold threads and locks.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    num_workers, mp_context=context
  ) as pool:
    jobs = [
      pool.submit(_index_elsewhere, index_shard, path, arguments)
      for path in files
    ]
    for job in jobs:
      yield job.result()


def _index_elsewhere(index_shard, path: str, arguments) -> Columns:
  return index_shard(open_storage(path), path, *arguments)


def _key(index_shard: Callable, arguments: Sequence[Any]) -> str:
  """Another key for whatever would give another index."""
  name = f"{index_shard.__module__}.{index_shard.__qualname__}"
  what = [_FORMAT, name, *arguments]
  text = json.dumps(what, sort_keys=True, default=lambda x: x.sha256)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _index_path(
  folder: str | pathlib.Path | None, path: str, key: str
) -> pathlib.Path | None:
  if folder is None:
    return None
  # Shards of one name may lie in many folders.
  place = hashlib.sha256(os.path.dirname(path).encode()).hexdigest()[:8]
  return pathlib.Path(folder) / f"{os.path.basename(path)}-{place}-{key}.npz"


def _load(
  index_path: pathlib.Path | None, path: str, shard: Identity
) -> Columns | None:
  if index_path is None or not index_path.is_file():
    return None
  with np.load(index_path, allow_pickle=False) as file:
    columns = dict(file)
  indexed = Identity(*columns.pop("shard").tolist())
  if indexed != shard:
    raise UserError(
      f"{path}: got a shard of {shard}, expected the {indexed} that was "
      f"indexed; restore the shard, or delete {index_path}"
    )
  return columns


def _save(index_path: pathlib.Path | None, columns: Columns, shard: Identity):
  """Writes under another name first: a file with the name is complete."""
  if index_path is None:
    return
  index_path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = index_path.with_suffix(f".{os.getpid()}.unfinished")
  with unfinished.open("wb") as file:
    np.savez(file, shard=np.asarray(shard, np.int64), **columns)
  unfinished.replace(index_path)

"""Indexes of shards: built in parallel, one small file each, checked.

What an index holds is the caller's: a dictionary of arrays per shard. This
file builds the missing ones, keeps them in a folder, and refuses one whose
shard has changed. A build that was interrupted goes on with what is missing.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rt2_jax.input_pipeline.storage import Storage, open_storage

Columns = dict[str, np.ndarray]

_FORMAT = 1  # raise it when the columns of an index change
_SMALL = 256 * 2**20  # bytes that one process indexes sooner than two start


def load_or_build(
  files: Sequence[str],
  index_shard: Callable[..., Columns],
  arguments: Sequence[Any],
  folder: str | pathlib.Path | None,
  num_workers: int | None = None,
) -> list[Columns]:
  """The index of every shard.

  Args:
    files: paths of the shards.
    index_shard: a module's function `(storage, path, *arguments) -> Columns`.
    arguments: what else the index depends on; JSON values.
    folder: where indexes are kept; None keeps them in memory only.
    num_workers: processes that build; default: one per CPU.

  Raises:
    ValueError: a shard has another size than when it was indexed.
  """
  storage = open_storage(files[0])
  key = _key(index_shard, arguments)
  sizes = [storage.size(path) for path in files]
  found = [
    _load(_index_path(folder, path, key), path, size)
    for path, size in zip(files, sizes, strict=True)
  ]
  missing = [i for i, columns in enumerate(found) if columns is None]
  built = _build(
    [files[i] for i in missing],
    index_shard,
    arguments,
    num_workers if sum(sizes[i] for i in missing) > _SMALL else 1,
    storage,
  )
  for i, columns in zip(missing, built, strict=True):
    _save(_index_path(folder, files[i], key), columns, sizes[i])
    found[i] = columns
  return found


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
  text = json.dumps(what, sort_keys=True)
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
  index_path: pathlib.Path | None, path: str, size: int
) -> Columns | None:
  if index_path is None or not index_path.is_file():
    return None
  with np.load(index_path, allow_pickle=False) as file:
    columns = dict(file)
  indexed = int(columns.pop("shard_size"))
  if indexed != size:
    raise ValueError(
      f"{path}: got a shard of {size} bytes, expected the {indexed} bytes that "
      f"were indexed; restore the shard, or delete {index_path}"
    )
  return columns


def _save(index_path: pathlib.Path | None, columns: Columns, size: int):
  """Writes under another name first: a file with the name is complete."""
  if index_path is None:
    return
  index_path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = index_path.with_suffix(f".{os.getpid()}.unfinished")
  with unfinished.open("wb") as file:
    np.savez(file, shard_size=size, **columns)
  unfinished.replace(index_path)

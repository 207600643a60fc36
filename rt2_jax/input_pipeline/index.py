"""Indexes of shards: loaded, or built in parallel; damage is counted.

What an index holds is the caller's: a dictionary of arrays per shard, with
`num_records`, and `damaged`, which lists what cannot be read. A build that was
interrupted goes on with what is missing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import multiprocessing
import pathlib
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm

from rt2_jax.byte_ranges import Storage, open_storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import kept_index, unusable
from rt2_jax.input_pipeline.kept_index import Columns, KeptIndexes, Recipe
from rt2_jax.input_pipeline.read_ahead import read_ahead
from rt2_jax.input_pipeline.splits import Shard, Span, Split
from rt2_jax.input_pipeline.unusable import Unusable

_LOG = logging.getLogger(__name__)

_SMALL = 256 * 2**20  # bytes that one process indexes sooner than two start
_READERS = 16  # kept indexes that are read at the same time
_LOOK_S = 1.0  # between looks for the indexes of other processes
_PATIENCE_S = 120.0  # without a new one: a shard of 1 GB takes 30 s


class Indexed(NamedTuple):
  """The index of a shard, and the range of its records in use.

  Attributes:
    path: the shard.
    read: reads its columns, once.
    first: record in use.
    stop: the record after the last in use.
  """

  path: str
  read: Callable[[], Columns]
  first: int
  stop: int


def read_all(shards: Iterable[Indexed]) -> Iterator[tuple[Indexed, Columns]]:
  """Reads the columns of shards in order, a few of them ahead."""
  shards = list(shards)
  columns = read_ahead(lambda shard: shard.read(), shards, _READERS)
  for shard, call in zip(shards, columns, strict=True):
    yield shard, call.result()


def load_or_build(
  split: Split,
  recipe: Recipe,
  folder: str | pathlib.Path | None,
  num_workers: int | None = None,
  max_skipped: int = 0,
) -> tuple[list[Indexed], list[Unusable]]:
  """Loads or builds the index of every shard that the split's part touches.

  Args:
    split: shards, and which of their records are asked for.
    recipe: how a shard is indexed.
    folder: where indexes are kept; None keeps them in memory only.
    num_workers: processes that build; default: one per CPU.
    max_skipped: examples that may be lost to damage. A kept index lists its
      own, so that the examples and their order are the same after a restart.

  Returns:
    The indexes, and what is damaged in the part that is asked for.

  Raises:
    UserError: a shard is not the one that was indexed, more damage, records
      that are missing, or a folder that is not on this machine.
  """
  shards, spans = _touched(split)
  kept = KeptIndexes(folder, recipe, [shard.path for shard in shards])
  found = kept.load(range(len(shards)))
  repaired = set()
  if unusable.count(_lost(shards, found, spans)) > max_skipped:
    # Damaged shards may be repaired by now.
    repaired = {i for i, c in enumerate(found) if c and _damaged_in(c)}
    found = [None if i in repaired else c for i, c in enumerate(found)]

  def build(numbers: Sequence[int]):
    _build_some(numbers, shards, spans, found, kept, num_workers, max_skipped)

  missing = [i for i, columns in enumerate(found) if columns is None]
  mine = missing if folder is None else _my_part(missing, repaired)
  build(mine)
  _await_others([i for i in missing if found[i] is None], found, kept)
  build([i for i in missing if found[i] is None])
  usual = _usual_length(found)
  if None in spans:
    spans = split.part.spans(
      [_length(*each, usual) for each in zip(shards, found, strict=True)]
    )
  damaged = _lost(shards, found, spans, usual)
  unusable.tolerate(damaged, max_skipped)
  _check_known(shards, found, usual)
  return [
    Indexed(shard.path, functools.partial(kept.read, i), *span)
    for i, (shard, span) in enumerate(zip(shards, spans, strict=True))
  ], damaged


def _touched(split: Split) -> tuple[list[Shard], list[Span | None]]:
  """Selects the shards to index, and the records of each.

  Where only a part is asked for of shards of unknown lengths, they are None.
  """
  lengths = [shard.length for shard in split.shards]
  if None not in lengths:
    spans = split.part.spans(lengths)
    touched = [i for i, (first, stop) in enumerate(spans) if first < stop]
    return [split.shards[i] for i in touched], [spans[i] for i in touched]
  span = (0, sys.maxsize) if split.part.is_whole else None
  return list(split.shards), [span] * len(lengths)


def _my_part(missing: Sequence[int], own: set[int]) -> list[int]:
  """Selects the shards that this process of a run indexes.

  Args:
    missing: numbers of the shards without an index.
    own: those that every process indexes by itself.
  """
  place, count = _place_in_run()
  return [i for i in missing if i in own or i % count == place]


def _place_in_run() -> tuple[int, int]:
  """Finds the number of this process in its run, and their count."""
  jax = sys.modules.get("jax")  # a run of several processes has loaded it
  if jax is None or not jax.distributed.is_initialized():
    return 0, 1
  return jax.process_index(), jax.process_count()


def _await_others(
  missing: Sequence[int], found: list[Columns | None], kept: KeptIndexes
):
  """Fills in what other processes index, for as long as they go on."""
  deadline = time.monotonic() + _PATIENCE_S
  while missing and time.monotonic() < deadline:
    time.sleep(_LOOK_S)
    for i, columns in zip(missing, kept.load(missing), strict=True):
      found[i] = columns
    left = [i for i in missing if found[i] is None]
    if len(left) < len(missing):
      deadline = time.monotonic() + _PATIENCE_S
    missing = left
  if missing:
    _LOG.warning(
      "%d of the indexes that other processes build did not appear in %s "
      "within %d s: builds them here; config.loader.index_folder should be a "
      "folder that all processes share",
      len(missing),
      kept.folder,
      _PATIENCE_S,
    )


def _build_some(
  missing: Sequence[int],
  shards: Sequence[Shard],
  spans: Sequence[Span | None],
  found: list[Columns | None],
  kept: KeptIndexes,
  num_workers: int | None,
  max_skipped: int,
):
  """Indexes and keeps shards; stops as soon as too much is damaged."""
  if not missing:
    return
  lost = _lost(shards, found, spans)
  if kept.size(missing) <= _SMALL:
    num_workers = 1
  paths = [shards[i].path for i in missing]
  built = _build(paths, kept.recipe, num_workers, kept.storage)
  bar = tqdm(built, "index", len(missing), unit=" shards", disable=None)
  with contextlib.closing(built):
    for i, columns in zip(missing, bar, strict=True):
      lost += _lost([shards[i]], [columns], [spans[i]])
      unusable.tolerate(lost, max_skipped)
      kept.save(i, columns)
      found[i] = kept_index.summary(columns)


def _lost(
  shards: Sequence[Shard],
  found: Sequence[Columns | None],
  spans: Sequence[Span | None],
  usual: int = 0,
) -> list[Unusable]:
  """Lists known damage and losses in the records asked for.

  Args:
    shards: files, and the records that they should hold.
    found: their indexes; None where it is not there yet.
    spans: which records are asked for; None where it is not known yet.
    usual: records of a shard whose length nobody states.
  """
  return [
    cut
    for shard, columns, span in zip(shards, found, spans, strict=True)
    if columns is not None and span is not None
    for loss in _losses(shard, columns, usual)
    if (cut := loss.within(*span))
  ]


def _losses(shard: Shard, columns: Columns, usual: int) -> list[Unusable]:
  """Lists the damage of a shard, its lost rest as a number of records.

  Raises:
    UserError: more records than are stated.
  """
  damaged = _damaged_in(columns)
  got, length = int(columns["num_records"]), _length(shard, columns, usual)
  if got > length:
    raise UserError(
      f"{shard.path}: got {got} records, expected {length} as "
      "dataset_info.json states; copy the dataset again"
    )
  if got < length and not _has_lost_rest(columns):
    problem = (
      f"{shard.path}: got {got} records, expected {length} as "
      "dataset_info.json states; copy the shard again"
    )
    return [*damaged, Unusable(problem, got, length - got, length - got)]
  return [loss if loss.records else _counted(loss, length) for loss in damaged]


def _counted(loss: Unusable, length: int) -> Unusable:
  """Counts the rest of a shard in records, each at least one example."""
  count = max(1, length - loss.record)
  problem = f"{loss.problem} ({count} records are lost)"
  return Unusable(problem, loss.record, count, count)


def _length(shard: Shard, columns: Columns, usual: int) -> int:
  """Finds the number of records that a shard should hold."""
  if shard.length is not None:
    return shard.length
  got = int(columns["num_records"])
  return max(got + 1, usual) if _has_lost_rest(columns) else got


def _usual_length(found: Sequence[Columns]) -> int:
  """Finds the most records in a whole shard; 0 if none is whole."""
  whole = [int(c["num_records"]) for c in found if not _has_lost_rest(c)]
  return max(whole, default=0)


def _check_known(shards: Sequence[Shard], found: Sequence[Columns], usual: int):
  """Refuses damage whose extent nothing tells.

  Raises:
    UserError: the rest of a shard is lost, and no shard's length is known.
  """
  for shard, columns in zip(shards, found, strict=True):
    if not usual and shard.length is None and _has_lost_rest(columns):
      raise UserError(
        f"{_damaged_in(columns)[-1].problem}; how many examples are lost is "
        "not known, so that config.loader.max_skipped cannot allow it"
      )


def _damaged_in(columns: Columns) -> list[Unusable]:
  return unusable.from_column(columns["damaged"])


def _has_lost_rest(columns: Columns) -> bool:
  return any(not loss.records for loss in _damaged_in(columns))


def _build(
  paths: Sequence[str],
  recipe: Recipe,
  num_workers: int | None,
  storage: Storage,
) -> Iterator[Columns]:
  """Yields the columns of each shard, in order."""
  if num_workers == 1 or len(paths) < 2 or not _can_be_sent(recipe):
    for path in paths:
      yield recipe.index_shard(storage, path, *recipe.arguments)
    return
  # Not forked: JAX and TensorFlow hold threads and locks.
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context)
  done = 0
  try:
    jobs = [
      pool.submit(_index_elsewhere, recipe.index_shard, path, recipe.arguments)
      for path in paths
    ]
    for job in jobs:
      yield job.result()
      done += 1
  except concurrent.futures.BrokenExecutor as error:
    _LOG.warning(
      "a process that indexes ended (%s): indexes in one process; a script "
      'that opens data needs `if __name__ == "__main__":`',
      error,
    )
    for path in paths[done:]:
      yield recipe.index_shard(storage, path, *recipe.arguments)
  finally:  # nobody waits for the rest of the shards after an error
    pool.shutdown(cancel_futures=True)


def _can_be_sent(recipe: Recipe) -> bool:
  """Tells whether other processes can be given the recipe's function."""
  try:
    pickle.dumps((recipe.index_shard, recipe.arguments))
  except (pickle.PicklingError, AttributeError, TypeError) as error:
    _LOG.warning("indexes in one process: %s", error)
    return False
  return True


def _index_elsewhere(index_shard, path: str, arguments) -> Columns:
  return index_shard(open_storage(path), path, *arguments)

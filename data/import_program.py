"""What all importers share: processes, and the files of a folder."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import flags

from data import derived_description
from data.conversions import Conversions
from data.episode_shards import (
  VERSION,
  Pictures,
  Shard,
  ShardWriter,
  Written,
  plan_shards,
)
from data.import_flags import Options, from_flags
from data.recordings import Layout, Recordings
from data.tfds_writer import METADATA, check_settings, describe_folder
from rt2_jax import local_copies, storage
from rt2_jax.differences import to_json
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import description
from rt2_jax.storage import locate, output_folder, write

_NAMED = 5  # problems that an error lists


def import_recordings(
  recordings: Recordings, output_dir: str | Path, options: Options
) -> storage.Path:
  """Writes recordings as a TFDS folder with a robot.json; returns the folder.

  Raises:
    UserError: more damaged episodes than options allow, options that do not
      fit the recordings, or a folder with other data.
  """
  if not re.fullmatch(r"[a-z]\w*", options.name):
    raise UserError(
      f"got --name={options.name!r}, expected a name such as my_arm: small "
      "letters, digits and _"
    )
  conversions = Conversions.parse(options.rotation, options.motion)
  layout = derived_description.state_units(
    conversions.convert_layout(recordings.layout),
    options.unit,
    options.units,
    options.gripper,
  )
  given = _given(options.robot)
  output = output_folder(output_dir, "--output_dir") / options.name
  folder = output / VERSION
  unfinished = storage.unfinished_folder(output, VERSION)
  records = options.settings() | {
    "num_episodes": len(recordings.names),
    "cameras": dict(layout.cameras),
    "numbers": [c.name for c in (*layout.action, *layout.state)],
    "rate_hz": layout.rate_hz,
  }
  # Does not decide the records: a corrected flag goes on with those there are.
  settings = records | {"description": options.description() | {"robot": given}}
  is_whole = _is_whole(unfinished, settings)
  if folder.exists() and not is_whole:
    check_settings(folder, settings, description.FILE)
    print(f"{folder} holds these episodes already")
    return folder
  if not is_whole:
    _check_missing(recordings, options.max_skipped)
    _claim(unfinished, records)
    pictures = Pictures(options.size, options.jpeg_quality)
    writer = ShardWriter(recordings, conversions, pictures, unfinished)
    written = _write_shards(writer, options)
    described = given or _derive(layout, options.name, written)
    _finish(unfinished, options.name, written, writer, settings)
    write(
      unfinished / description.FILE,
      json.dumps(described, indent=2, ensure_ascii=False) + "\n",
    )
    _report(folder, written, layout)
  local_copies.publish(unfinished, folder)
  if unfinished.exists():  # a bucket holds a copy
    shutil.rmtree(unfinished)
  for advice in () if given else derived_description.advice(layout, folder):
    print(advice)
  return folder


def _is_whole(unfinished: Path, settings: Mapping[str, Any]) -> bool:
  """Tells whether a stopped call only had to put the folder in its place."""
  if not (unfinished / description.FILE).exists():
    return False
  found = json.loads((unfinished / METADATA).read_text())
  return found == to_json(settings)


def _given(path: str) -> Any:
  """Reads the fields of --robot; None without that flag.

  Raises:
    UserError: no such file, or it is no description.
  """
  if not path:
    return None
  try:
    fields = json.loads(locate(path, "--robot").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(
      f"got --robot={path}, which does not read ({error}), expected a "
      f"{description.FILE}"
    ) from error
  description.parse(fields, path)
  return fields


def _claim(unfinished: Path, settings: Mapping[str, Any]):
  """Makes the folder of an import, or goes on with one of these settings.

  What was written with others is of no use, and is removed.
  """
  path = unfinished / METADATA
  if path.exists() and json.loads(path.read_text()) != to_json(settings):
    print(f"{unfinished}: was of other flags or another input; starts anew")
    shutil.rmtree(unfinished)
  unfinished.mkdir(parents=True, exist_ok=True)
  for half in unfinished.glob(".*.unfinished"):  # of a process that was killed
    half.unlink()
  write(path, json.dumps(settings))


def _check_missing(recordings: Recordings, max_skipped: int):
  """Raises UserError where there is no episode, or too many lack a file."""
  names, absent = recordings.names, recordings.missing()
  if not names:
    raise UserError("got no episode; check --input")
  _check_problems(
    [f"{names[number]}: {problem}" for number, problem in absent.items()],
    max_skipped,
  )


def _write_shards(
  writer: ShardWriter, options: Options
) -> dict[Shard, Written]:
  """Writes all shards that are missing.

  Raises:
    UserError: more episodes with problems than may be skipped.
  """
  names = writer.recordings.names
  shards = plan_shards(
    len(names), options.val_every, options.episodes_per_shard
  )
  written, found = {}, []
  bar = tqdm.tqdm(total=len(names), unit=" episodes", mininterval=1)
  with bar:
    for shard, result in _in_processes(writer, shards, options.num_workers):
      written[shard] = result
      bar.update(len(shard.episodes))
      found += result.problems
      _check_problems(found, options.max_skipped)
  for problem in found:
    print(f"left out: {problem}")
  return {shard: written[shard] for shard in shards}


def _in_processes(
  writer: ShardWriter, shards: Sequence[Shard], num_workers: int | None
) -> Iterator[tuple[Shard, Written]]:
  """Yields shards as they are finished."""
  workers = min(num_workers or os.cpu_count() or 1, len(shards))
  if workers == 1:
    for shard in shards:
      yield shard, writer.write(shard)
    return
  # Fork would copy TensorFlow's threads without what they hold.
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
  try:
    tasks = {pool.submit(writer.write, shard): shard for shard in shards}
    for task in concurrent.futures.as_completed(tasks):
      yield tasks[task], task.result()
  finally:
    pool.shutdown(cancel_futures=True)


def _check_problems(problems: Sequence[str], max_skipped: int):
  if len(problems) > max_skipped:
    more = len(problems) - _NAMED
    lines = [*problems[:_NAMED], *([f"and {more} more"] if more > 0 else [])]
    raise UserError(
      f"got {len(problems)} damaged episodes, expected at most "
      f"{max_skipped}:\n  " + "\n  ".join(lines) + "\nrepair them, or pass "
      f"--max_skipped={len(problems)} to leave them out; what was finished is "
      "kept"
    )


def _derive(
  layout: Layout, name: str, written: Mapping[Shard, Written]
) -> dict[str, Any]:
  train = [w for shard, w in written.items() if shard.split == "train"]
  numbers = _numbers(train)
  if not len(numbers.action):
    raise UserError("got no step for training; see the episodes left out")
  recorded = _numbers(written.values())
  fields = derived_description.derive(layout, name, numbers, recorded)
  description.parse(fields, description.FILE)
  return fields


def _numbers(shards: Iterable[Written]) -> derived_description.Numbers:
  shards = list(shards)
  return derived_description.Numbers(
    np.concatenate([each.action for each in shards]),
    np.concatenate([each.state for each in shards]),
  )


def _finish(
  folder: Path,
  name: str,
  written: Mapping[Shard, Written],
  writer: ShardWriter,
  settings: Mapping[str, Any],
):
  """Names the shards that hold episodes as TFDS does, and describes them."""
  lengths: dict[str, list[int]] = {}
  num_bytes: dict[str, int] = {}
  for split in dict.fromkeys(shard.split for shard in written):
    full = [s for s, w in written.items() if s.split == split and w.lengths]
    for i, shard in enumerate(full):
      file = f"{name}-{split}.tfrecord-{i:05d}-of-{len(full):05d}"
      (folder / shard.file).rename(folder / file)
    if full:
      lengths[split] = [len(written[shard].lengths) for shard in full]
      num_bytes[split] = sum(written[shard].num_bytes for shard in full)
  describe_folder(folder, name, writer.features(), lengths, num_bytes, settings)
  for shard in written:
    (folder / f"{shard.file}.npz").unlink()
    (folder / shard.file).unlink(missing_ok=True)  # without an episode


def _report(folder: Path, written: Mapping[Shard, Written], layout: Layout):
  notes = [note for each in written.values() for note in each.notes]
  for note in notes[:_NAMED]:
    print(note)
  if len(notes) > _NAMED:
    print(f"and {len(notes) - _NAMED} more such episodes")
  lengths = [n for each in written.values() for n in each.lengths]
  size = sum(each.num_bytes for each in written.values())
  print(
    f"{folder}: {len(lengths):,} episodes, {sum(lengths):,} steps, "
    f"{size / 1e6:.1f} MB; cameras {', '.join(layout.cameras)}; "
    f"{len(layout.action)} numbers of an action, {len(layout.state)} of a state"
  )


def run(recordings: Recordings, args: flags.FlagValues):
  """Imports as the flags say; raises as `import_recordings`."""
  import_recordings(recordings, args.output_dir, from_flags(args))

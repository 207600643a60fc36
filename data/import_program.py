"""What all importers share: flags, processes, and the files of a folder."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from data.recordings import Layout, Recordings
from data.tfds_writer import check_settings, describe_folder
from rt2_jax import local_copies, storage
from rt2_jax.differences import to_json
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import description
from rt2_jax.storage import locate, output_folder, write

_WRITER_VERSION = 1  # raise it where the same recordings give other records
_NAMED = 5  # problems that an error lists


class Options(NamedTuple):
  """How recordings are imported; the fields are flags.

  Attributes:
    name: of the data set, and of its folder.
    image_size: `HEIGHTxWIDTH`; "" keeps that of the recording.
    jpeg_quality: of the pictures.
    val_every: every n-th episode is for validation; 0: none.
    episodes_per_shard: at most.
    max_skipped: episodes that may be left out because they are damaged.
    num_workers: processes; 1 does all in this one, None starts one for each
      CPU.
    unit: see `derived_description.state_units`, as of the next two.
    units: likewise.
    gripper: likewise.
    rotation: see `conversions`.
    motion: likewise.
    robot: a robot.json to use in place of a derived one; "" derives it.
  """

  name: str
  image_size: str = ""
  jpeg_quality: int = 95
  val_every: int = 0
  episodes_per_shard: int = 10
  max_skipped: int = 0
  num_workers: int | None = None
  unit: str = ""
  units: Sequence[str] = ()
  gripper: Sequence[str] = ()
  rotation: Sequence[str] = ()
  motion: Sequence[str] = ()
  robot: str = ""

  def settings(self) -> dict[str, Any]:
    """Names all that decides which records an import gives."""
    return {
      "image_size": self.image_size,
      "jpeg_quality": self.jpeg_quality,
      "val_every": self.val_every,
      "episodes_per_shard": self.episodes_per_shard,
      "rotation": list(self.rotation),
      "motion": list(self.motion),
      "writer_version": _WRITER_VERSION,
    }


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
  settings = options.settings() | {
    "num_episodes": len(recordings.names),
    "cameras": dict(layout.cameras),
    "numbers": [c.name for c in (*layout.action, *layout.state)],
  }
  if folder.exists():
    check_settings(folder, settings)
    print(f"{folder} holds these episodes already")
    return folder
  _check_missing(recordings, options.max_skipped)
  _claim(unfinished, settings)
  pictures = Pictures(_image_size(options.image_size), options.jpeg_quality)
  writer = ShardWriter(recordings, conversions, pictures, unfinished)
  written = _write_shards(writer, options)
  description_fields = given or _derive(layout, options.name, written)
  _finish(unfinished, options.name, written, writer, settings)
  write(
    unfinished / description.FILE,
    json.dumps(description_fields, indent=2, ensure_ascii=False) + "\n",
  )
  local_copies.publish(unfinished, folder)
  _report(folder, written, layout)
  for advice in () if given else derived_description.advice(layout, folder):
    print(advice)
  return folder


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


def _image_size(text: str) -> tuple[int, int] | None:
  if not text:
    return None
  match = re.fullmatch(r"(\d+)x(\d+)", text)
  if not match:
    raise UserError(
      f"got --image_size={text!r}, expected HEIGHTxWIDTH such as 256x320"
    )
  return int(match[1]), int(match[2])


def _claim(unfinished: Path, settings: Mapping[str, Any]):
  """Makes the folder of an import, or goes on with one of these settings.

  What was written with others is of no use, and is removed.
  """
  path = unfinished / "metadata.json"
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
  action, state = (
    np.concatenate([getattr(each, field) for each in train])
    for field in ("action", "state")
  )
  if not len(action):
    raise UserError("got no step for training; see the episodes left out")
  fields = derived_description.derive(layout, name, action, state)
  description.parse(fields, description.FILE)
  return fields


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


def define_flags():
  """Defines the flags that all importers share."""
  flags.DEFINE_string("input", None, "What to import", required=True)
  flags.DEFINE_string("output_dir", None, "Gets NAME/1.0.0/", required=True)
  flags.DEFINE_string("name", None, "Of the data set", required=True)
  flags.DEFINE_list("cameras", [], "NAME=CAMERA; default: all of them")
  flags.DEFINE_string("instruction", "", "In place of the recorded texts")
  flags.DEFINE_string("image_size", "", "HEIGHTxWIDTH; default: as recorded")
  flags.DEFINE_integer("jpeg_quality", 95, "Of the pictures", 1, 100)
  flags.DEFINE_integer("val_every", 0, "Every n-th episode is validation", 0)
  flags.DEFINE_integer("episodes_per_shard", 10, "At most", 1)
  flags.DEFINE_integer("max_skipped", 0, "Damaged episodes to leave out", 0)
  flags.DEFINE_integer("num_workers", None, "Processes; default: all CPUs", 1)
  flags.DEFINE_string("unit", "", "Of numbers that no other flag names")
  flags.DEFINE_multi_string(
    "units", [], "NAME=UNIT or NAME=UNIT*SCALE; repeat it"
  )
  flags.DEFINE_multi_string(
    "gripper", [], "NAME=OPEN:CLOSED; repeat it for each"
  )
  flags.DEFINE_multi_string("rotation", [], "See data/conversions.py")
  flags.DEFINE_multi_string("motion", [], "See data/conversions.py")
  flags.DEFINE_string("robot", "", "A robot.json, in place of a derived one")


def run(recordings: Recordings, args: flags.FlagValues):
  """Imports as the flags say; raises as `import_recordings`."""
  options = Options(**{name: getattr(args, name) for name in Options._fields})
  import_recordings(recordings, args.output_dir, options)

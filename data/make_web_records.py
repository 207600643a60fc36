"""Writes image-text examples as the TFRecord shards that training reads.

  python -m data.make_web_records --format=jsonl --input=DIR/train.jsonl \\
    --output_dir=OUT --name=vqa

reads one of these formats:

  jsonl       lines {"image": path, "prefix": question, "suffix": answer or
              list of answers}, as big_vision and PaliGemma fine-tune on, and
              optional "task" and "language"; paths begin at --image_folder
  llava       a JSON list of conversations about pictures
  coco        COCO's JSON: captions, or boxes with categories
  tfds        a TFDS version folder with the features `image` and --answers,
              e.g. coco_captions; --question is asked of every image
  webdataset  tars (a glob) of KEY.jpg or .png beside KEY.json (fields as in
              jsonl) or KEY.txt (the answer to --question), as WebDataset and
              img2dataset write them

and writes `OUT/{name}-{split}.tfrecord-00000-of-000NN`, the format described
in rt2_jax/input_pipeline/web.py, and their lengths in dataset_info.json.
Example i goes to shard i modulo NN, so the same input gives the same bytes. An
image stays encoded as it is unless it is larger than --max_side, neither JPEG
nor PNG, or stored turned: then it is written again, once, and training need not
do it in every epoch. Every image is decoded as training will decode it. An
example that cannot be used is left out and listed in a file beside them, up to
--max_skipped of all. A call that was stopped goes on.
"""

import concurrent.futures
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rt2_jax.errors import UserError

# TensorFlow reads this when it is imported, and is quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow as tf
import tqdm
from absl import app, flags
from PIL import Image

from data import web_inputs, web_json, web_tars, web_tfds
from data.orientation import is_upright, turn_upright
from data.web_inputs import Defaults, Found
from data.web_progress import Progress, shard_path
from launch import program
from rt2_jax import images, local_copies, storage
from rt2_jax.byte_ranges import open_storage

KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO: JPEG as some cameras write it
JPEG_QUALITY = 95
CHUNK = 256  # examples in memory at a time
SAVED = 40 * CHUNK  # examples after which the work so far is kept
MAX_SKIPPED = 0.01  # fraction of the examples
FORMATS = ("jsonl", "llava", "coco", "tfds", "webdataset")


def prepare_image(image: bytes, max_side: int) -> bytes:
  """Keeps an image, or encodes it as an RGB JPEG of at most `max_side` pixels.

  Raises:
    UserError: bytes that training could not decode.
  """
  try:
    with Image.open(io.BytesIO(image)) as picture:
      small = max(picture.size) <= max_side
      kept = picture.format in KEPT_FORMATS and is_upright(picture) and small
      if not kept:
        image = encode(picture, max_side)
  except UserError:
    raise
  except images.UNREADABLE as error:
    raise UserError(
      f"got an image that does not decode ({error}); repair or remove this "
      "example"
    ) from error
  images.decode(image)
  return image


def encode(picture: Image.Image, max_side: int) -> bytes:
  """Writes the picture as a JPEG: upright, and made smaller if it is larger."""
  upright = turn_upright(picture)
  if upright.mode in ("I", "F"):
    upright = scale_to_8_bits(upright)
  picture = images.to_rgb(upright)
  picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, "jpeg", quality=JPEG_QUALITY)
  return file.getvalue()


def scale_to_8_bits(picture: Image.Image) -> Image.Image:
  """Scales 32-bit grey: floats of 0 to 1 as such, others to their own range.

  Raises:
    UserError: a picture with a number that is not finite.
  """
  if picture.format == "PNG":  # older Pillows open 16 bits so
    return picture
  values = np.asarray(picture, np.float64)
  if not np.isfinite(values).all():
    raise UserError("got an image with numbers that are not finite")
  low, high = values.min(), values.max()
  if picture.mode == "F" and low >= 0 and high <= 1:
    low, high = 0.0, 1.0
  scaled = (values - low) / max(high - low, 1e-12)
  return Image.fromarray(np.round(255 * scaled).astype(np.uint8))


def record(found: Found, max_side: int) -> bytes | UserError:
  """Encodes an example as its record, or says why it cannot be used."""
  try:
    example = found.load()
    image = prepare_image(example.image, max_side)
  except UserError as problem:
    return UserError(f"{found.where}: {problem}")
  features = {
    "image": [image],
    "question": [example.question.encode()],
    "answers": [answer.encode() for answer in example.answers],
    "task": [example.task.encode()],
    "language": [example.language.encode()],
  }
  proto = tf.train.Example(
    features=tf.train.Features(
      feature={
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        for name, values in features.items()
      }
    )
  )
  return proto.SerializeToString(deterministic=True)


def make(
  found: Iterable[Found],
  output_dir: str | Path,
  name: str,
  split: str = "train",
  num_shards: int = 1,
  max_side: int = 512,
  max_skipped: float = MAX_SKIPPED,
  source: Any = None,
) -> list[storage.Path]:
  """Writes all shards, or goes on with them; returns their paths.

  Args:
    found: the examples, from one of the readers.
    output_dir: gets the shards, and the list of what was left out.
    name: of the data, the first part of the files' names.
    split: e.g. "train".
    num_shards: files to write.
    max_side: larger images are made smaller, pixels.
    max_skipped: fraction of the examples that may be left out.
    source: JSON values that say what is read: a stopped program goes on only
      where they are the same.

  Raises:
    UserError: too many bad examples, by their places; fewer examples than
      shards; or the folder holds shards of this split already.
  """
  output_dir = storage.locate(output_dir, "--output_dir")
  unfinished = storage.unfinished_folder(output_dir, f"{name}-{split}")
  settings = {"source": source, "max_side": max_side, "shards": num_shards}
  progress = Progress.find(unfinished, settings)
  own = f"{name}-{split}." if progress and progress.is_done else "/"
  existing = sorted(output_dir.glob(f"*-{split}.tfrecord-*"))
  others = [path for path in existing if not path.name.startswith(own)]
  if others:
    raise UserError(
      f"got an output folder with {others[0]}, expected none of split "
      f"{split!r}; pass another --output_dir, or remove the files"
    )
  storage.output_folder(output_dir, "--output_dir")
  progress = progress or Progress.begin(unfinished, settings, num_shards)
  if not progress.is_done:
    write(found, progress, unfinished, max_side, max_skipped)
  count = progress.written
  if count < num_shards:
    raise UserError(
      f"got {count} examples for {num_shards} shards, expected at least one "
      "each; check --input or lower --num_shards"
    )
  told = output_dir / f"{name}-{split}.skipped.txt"
  if progress.skipped:
    storage.write(told, "\n".join(progress.skipped) + "\n")
    print(
      f"{len(progress.skipped):,} of {progress.consumed:,} examples were left "
      f"out, see {told}; the first: {progress.skipped[0]}"
    )
  written = put_in_place(unfinished, output_dir, f"{name}-{split}", num_shards)
  lengths = [len(range(i, count, num_shards)) for i in range(num_shards)]
  state_lengths(output_dir, name, split, lengths)
  shutil.rmtree(unfinished)
  return written


def put_in_place(
  unfinished: Path, folder: storage.Path, name: str, num_shards: int
) -> list[storage.Path]:
  """Moves or copies the shards that a stopped program has not yet."""
  written = []
  for i in range(num_shards):
    written.append(folder / f"{name}.tfrecord-{i:05d}-of-{num_shards:05d}")
    if shard_path(unfinished, i).exists():
      local_copies.publish(shard_path(unfinished, i), written[-1])
  return written


def state_lengths(
  folder: storage.Path, name: str, split: str, lengths: Sequence[int]
):
  """Adds a split to dataset_info.json, with which readers compare shards."""
  path = folder / "dataset_info.json"
  info = {"name": name, "fileFormat": "tfrecord", "splits": []}
  if path.exists():
    info = json.loads(path.read_text())
  others = [each for each in info["splits"] if each["name"] != split]
  stated = {"name": split, "shardLengths": [str(n) for n in lengths]}
  info["splits"] = [*others, stated]
  storage.write(path, json.dumps(info, indent=2) + "\n")


def write(
  found: Iterable[Found],
  progress: Progress,
  folder: Path,
  max_side: int,
  max_skipped: float,
):
  """Deals the examples that are left to the shards in turn.

  Raises:
    UserError: more cannot be used than may be left out.
  """
  files = progress.open_files(folder)
  left = itertools.islice(found, progress.consumed, None)
  bar = tqdm.tqdm(
    left, unit=" examples", mininterval=1, initial=progress.consumed
  )
  try:
    for data in in_parallel(lambda each: record(each, max_side), bar):
      progress.consumed += 1
      if isinstance(data, UserError):
        progress.skipped.append(str(data))
        progress.check(max_skipped)
      else:
        files[progress.written % len(files)].write(data)
        progress.written += 1
      if progress.consumed % SAVED == 0:
        progress.save(folder, files)
    progress.save(folder, files)
    progress.check(max_skipped, is_done=True)
    progress.is_done = True
    progress.save(folder, files)
  finally:
    for file in files:
      file.close()


def in_parallel(function, items: Iterable) -> Iterator:
  """Maps on all CPUs, in order, with few items in memory at a time."""
  items = iter(items)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    while chunk := list(itertools.islice(items, CHUNK)):
      yield from pool.map(function, chunk)


def read(args: flags.FlagValues) -> Iterator[Found]:
  """Reads the examples that the flags ask for."""
  defaults = Defaults(args.question, args.task, args.language)
  if args.format == "tfds":
    return web_tfds.read_tfds(
      args.input, args.input_split, args.answers, defaults
    )
  if args.format == "webdataset":
    return web_tars.read_tars(args.input, defaults)
  folder = args.image_folder or storage.locate(args.input, "--input").parent
  readers = {
    "jsonl": web_inputs.read_jsonl,
    "llava": web_json.read_llava,
    "coco": web_json.read_coco,
  }
  return readers[args.format](args.input, folder, defaults)


def describe_source(args: flags.FlagValues) -> dict[str, Any]:
  """Says what is read: flags, and the files with their sizes."""
  names = ("format", "image_folder", "input_split", "answers")
  names += ("question", "task", "language")
  files = [str(path) for path in web_inputs.find(args.input)]
  files = files if args.format != "tfds" else []  # a folder
  sizes = open_storage(args.input).sizes(files)
  stated = dict(zip(files, sizes, strict=True))
  flags_said = {name: getattr(args, name) for name in names}
  return flags_said | {"input": args.input, "files": stated}


@program.main
def main():
  args = flags.FLAGS
  paths = make(
    read(args),
    args.output_dir,
    args.name,
    args.split,
    args.num_shards,
    args.max_side,
    args.max_skipped,
    describe_source(args),
  )
  size = sum(open_storage(str(paths[0])).sizes(list(map(str, paths))))
  print(f"{args.output_dir}: {len(paths)} shards, {size / 1e6:.1f} MB")


if __name__ == "__main__":
  defaults = Defaults()
  flags.DEFINE_enum("format", None, FORMATS, "Of the input", required=True)
  flags.DEFINE_string("input", None, "File, folder or glob", required=True)
  flags.DEFINE_string("image_folder", None, "Default: beside the file")
  flags.DEFINE_string("input_split", "train", "Split of a TFDS dataset")
  flags.DEFINE_string("answers", "captions/text", "TFDS feature with texts")
  flags.DEFINE_string("question", defaults.question, "Where the input has none")
  flags.DEFINE_string("task", defaults.task, "Where the input says none")
  flags.DEFINE_string("language", defaults.language, "Likewise")
  flags.DEFINE_string("output_dir", None, "Where to write", required=True)
  flags.DEFINE_string("name", None, "First part of file names", required=True)
  flags.DEFINE_string("split", "train", "Split to write")
  flags.DEFINE_integer("num_shards", 1, "Files to write", 1, 99_999)
  flags.DEFINE_integer("max_side", 512, "Larger images shrink, pixels", 8)
  flags.DEFINE_float(
    "max_skipped", MAX_SKIPPED, "Fraction of bad examples to leave out", 0, 1
  )
  app.run(main)

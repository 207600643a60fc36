"""Writes image-text examples as the TFRecord shards that training reads.

  python -m data.make_web_records --format=jsonl --input=DIR/train.jsonl \\
    --output_dir=OUT --name=vqa

reads one of three formats:

  jsonl       lines {"image": path, "prefix": question, "suffix": answer or
              list of answers}, as big_vision and PaliGemma fine-tune on, and
              optional "task" and "language"; paths begin at --image_folder
  tfds        a TFDS version folder with the features `image` and --answers,
              e.g. coco_captions; --question is asked of every image
  webdataset  tars (a glob) of KEY.jpg or .png beside KEY.json (fields as in
              jsonl) or KEY.txt (the answer to --question)

and writes `OUT/{name}-{split}.tfrecord-00000-of-000NN`, the format described
in rt2_jax/input_pipeline/web.py, and their lengths in dataset_info.json.
Example i goes to shard i modulo NN, so the same input gives the same bytes. An
image stays encoded as it is unless it is larger than --max_side, neither JPEG
nor PNG, or stored turned: then it is written again, once, and training need not
do it in every epoch. Every image is decoded as training will decode it. It
needs no network.
"""

import concurrent.futures
import contextlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rt2_jax.errors import UserError

# TensorFlow reads this when it is imported, and is quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow as tf
import tqdm
from absl import app, flags
from PIL import ExifTags, Image, ImageOps

from data import web_inputs
from data.web_inputs import FORMATS, Defaults, Found, parse_json
from launch import program
from rt2_jax import images, local_copies, storage
from rt2_jax.byte_ranges import open_storage
from rt2_jax.input_pipeline.frames import decode_image

KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO: JPEG as some cameras write it
JPEG_QUALITY = 95
NUM_LOC = 1024  # bins of a coordinate in PaliGemma's vocabulary
CHUNK = 256  # examples in memory at a time


def detection_answer(
  boxes: Sequence[Sequence[float]], labels: Sequence[str]
) -> str:
  """Writes `"<loc0102><loc0000><loc0511><loc1023> cup ; …"`, as PaliGemma does.

  Args:
    boxes: float[N, 4], y_min x_min y_max x_max as parts of the image, 0..1.
    labels: N names.

  Raises:
    UserError: a box outside the image or upside down, or none at all.
  """
  corners = np.asarray(boxes, np.float64).reshape(-1, 4)
  if len(corners) != len(labels) or not len(labels):
    raise UserError(
      f"got {len(corners)} boxes and {len(labels)} labels, expected one label "
      "for each box and at least one box"
    )
  inside = (corners >= 0).all(-1) & (corners <= 1).all(-1)
  good = inside & (corners[:, :2] < corners[:, 2:]).all(-1)
  if not good.all():
    raise UserError(
      f"got box {corners[~good][0].tolist()}, expected y_min x_min y_max "
      "x_max as parts of the image: 0..1 and min < max"
    )
  bins = np.minimum(corners * NUM_LOC, NUM_LOC - 1).astype(int)
  return " ; ".join(
    "".join(f"<loc{i:04d}>" for i in row) + f" {label}"
    for row, label in zip(bins, labels, strict=True)
  )


def check_texts(found: Found) -> None:
  """Raises UserError unless question and every answer are there."""
  where, example = found
  for name, values in (
    ("question (prefix)", [example.question]),
    ("answer (suffix)", example.answers),
  ):
    if not values or not all(isinstance(v, str) and v.strip() for v in values):
      raise UserError(
        f"{where}: got {list(values)} as {name}, expected text that is not "
        "empty; repair or remove this example"
      )


def prepare_image(image: bytes, max_side: int, where: str) -> bytes:
  """Keeps an image, or encodes it as an RGB JPEG of at most `max_side` pixels.

  Raises:
    UserError: bytes that training could not decode; says `where` they lie.
  """
  try:
    with Image.open(io.BytesIO(image)) as picture:
      upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
      small = max(picture.size) <= max_side
      if not (picture.format in KEPT_FORMATS and upright and small):
        image = encode(picture, max_side)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  except images.UNREADABLE as error:
    raise UserError(
      f"{where}: got an image that does not decode ({error}); repair or "
      "remove this example"
    ) from error
  decode_image(image, where)
  return image


def encode(picture: Image.Image, max_side: int) -> bytes:
  """Writes the picture as a JPEG: upright, and made smaller if it is larger."""
  upright = ImageOps.exif_transpose(picture)
  upright.format = picture.format  # `to_rgb` asks for it
  picture = images.to_rgb(upright)
  picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, "jpeg", quality=JPEG_QUALITY)
  return file.getvalue()


def record(found: Found, max_side: int) -> bytes:
  """Checks an example and encodes it as the bytes of its record."""
  check_texts(found)
  where, example = found
  features = {
    "image": [prepare_image(example.image, max_side, where)],
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
  output_dir: str | os.PathLike,
  name: str,
  split: str = "train",
  num_shards: int = 1,
  max_side: int = 512,
) -> list[storage.Path]:
  """Writes all shards or, when anything is wrong, none; returns their paths.

  Args:
    found: the examples, from one of the readers.
    output_dir: gets the shards.
    name: of the data, the first part of the files' names.
    split: e.g. "train".
    num_shards: files to write.
    max_side: larger images are made smaller, pixels.

  Raises:
    UserError: a bad example, by its place; fewer examples than shards; or the
      folder holds shards of this split already.
  """
  output_dir = storage.locate(output_dir, "--output_dir")
  existing = sorted(output_dir.glob(f"*-{split}.tfrecord-*"))
  if existing:
    raise UserError(
      f"got an output folder with {existing[0]}, expected none of split "
      f"{split!r}; pass another --output_dir, or remove the files"
    )
  storage.output_folder(output_dir, "--output_dir")
  beside = None if storage.is_url(output_dir) else output_dir
  with tempfile.TemporaryDirectory(dir=beside) as unfinished:
    paths = [
      Path(unfinished) / f"{name}-{split}.tfrecord-{i:05d}-of-{num_shards:05d}"
      for i in range(num_shards)
    ]
    count = write(found, paths, max_side)
    if count < num_shards:
      raise UserError(
        f"got {count} examples for {num_shards} shards, expected at least one "
        "each; check --input or lower --num_shards"
      )
    written = [output_dir / path.name for path in paths]
    for path, target in zip(paths, written, strict=True):
      local_copies.publish(path, target)
    lengths = [len(range(i, count, num_shards)) for i in range(num_shards)]
    state_lengths(output_dir, name, split, lengths)
    return written


def state_lengths(
  folder: storage.Path, name: str, split: str, lengths: Sequence[int]
):
  """Adds a split to dataset_info.json, with which readers compare shards."""
  path = folder / "dataset_info.json"
  info = {"name": name, "fileFormat": "tfrecord", "splits": []}
  if path.exists():
    info = parse_json(path.read_text(), str(path))
  others = [each for each in info["splits"] if each["name"] != split]
  stated = {"name": split, "shardLengths": [str(n) for n in lengths]}
  info["splits"] = [*others, stated]
  storage.write(path, json.dumps(info, indent=2) + "\n")


def write(found: Iterable[Found], paths: Sequence[Path], max_side: int) -> int:
  """Deals the examples to the shards in turn; returns how many there were."""
  count = 0
  with contextlib.ExitStack() as stack:
    writers = [
      stack.enter_context(tf.io.TFRecordWriter(str(path))) for path in paths
    ]
    examples = tqdm.tqdm(found, unit=" examples", mininterval=1)
    for data in in_parallel(lambda each: record(each, max_side), examples):
      writers[count % len(writers)].write(data)
      count += 1
  return count


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
    return web_inputs.read_tfds(
      args.input, args.input_split, args.answers, defaults
    )
  if args.format == "webdataset":
    return web_inputs.read_tars(args.input, defaults)
  folder = args.image_folder or storage.locate(args.input, "--input").parent
  return web_inputs.read_jsonl(args.input, folder, defaults)


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
  )
  size = sum(open_storage(str(paths[0])).sizes(list(map(str, paths))))
  print(f"{args.output_dir}: {len(paths)} shards, {size / 1e6:.1f} MB")


if __name__ == "__main__":
  defaults = Defaults()
  flags.DEFINE_enum("format", None, FORMATS, "Of the input", required=True)
  flags.DEFINE_string("input", None, "File, folder or glob", required=True)
  flags.DEFINE_string("image_folder", None, "Default: beside the JSONL file")
  flags.DEFINE_string("input_split", "train", "Split of a TFDS dataset")
  flags.DEFINE_string("answers", "captions/text", "TFDS feature with texts")
  flags.DEFINE_string("question", defaults.question, "For TFDS and .txt")
  flags.DEFINE_string("task", defaults.task, "Where the input says none")
  flags.DEFINE_string("language", defaults.language, "Likewise")
  flags.DEFINE_string("output_dir", None, "Where to write", required=True)
  flags.DEFINE_string("name", None, "First part of file names", required=True)
  flags.DEFINE_string("split", "train", "Split to write")
  flags.DEFINE_integer("num_shards", 1, "Files to write", 1, 99_999)
  flags.DEFINE_integer("max_side", 512, "Larger images shrink, pixels", 8)
  app.run(main)

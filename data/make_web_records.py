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
nor PNG, or stored turned: then it is
written again, once, and training need not do it in every epoch. Every image is
decoded as training will decode it. It needs no network.
"""

import concurrent.futures
import contextlib
import glob
import io
import itertools
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rt2_jax.errors import UserError

# TensorFlow reads this when it is imported, and is quiet.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import tqdm
from absl import app, flags, logging
from PIL import ExifTags, Image, ImageOps

from rt2_jax import images
from rt2_jax.input_pipeline.frames import decode_image
from rt2_jax.input_pipeline.web import WebExample
from rt2_jax.local_files import local_path

FORMATS = ("jsonl", "tfds", "webdataset")
KEPT_FORMATS = ("JPEG", "MPO", "PNG")  # MPO: JPEG as some cameras write it
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
JPEG_QUALITY = 95
NUM_LOC = 1024  # bins of a coordinate in PaliGemma's vocabulary
CHUNK = 256  # examples in memory at a time


class Found(NamedTuple):
  """An example and where it was found, for error messages."""

  where: str
  example: WebExample


class Defaults(NamedTuple):
  """What the input does not say."""

  question: str = "Generate caption in en"
  task: str = ""
  language: str = "en"


# -------------------------------------------------------------------- readers


def read_jsonl(
  path: str | Path, image_folder: str | Path, defaults: Defaults
) -> Iterator[Found]:
  """The lines of a JSONL file; raises UserError naming a bad line."""
  with open(path, encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      line = line.strip()
      if not line:
        continue
      where = f"{path}, line {number}"
      fields = parse_json(line, where)
      image = Path(image_folder) / str(fields.get("image", ""))
      if not image.is_file():
        raise UserError(
          f"{where}: got image {str(image)!r}, which is no file; correct the "
          "line or pass another --image_folder"
        )
      yield Found(where, from_fields(fields, image.read_bytes(), defaults))


def read_tfds(
  folder: str | Path, split: str, answers: str, defaults: Defaults
) -> Iterator[Found]:
  """The examples of a TFDS dataset, in the order of its shards.

  Args:
    folder: version folder, e.g. `…/coco_captions/2014/1.1.0`.
    split: e.g. "train".
    answers: the feature that holds the texts, e.g. "captions/text".
    defaults: the question, and what else TFDS does not say.
  """
  data = tfds.builder_from_directory(folder).as_dataset(
    split,
    shuffle_files=False,
    decoders={"image": tfds.decode.SkipDecoding()},
    read_config=tfds.ReadConfig(interleave_cycle_length=1),
  )
  for number, fields in enumerate(tfds.as_numpy(data)):
    texts = np.atleast_1d(feature(fields, answers))
    answer = tuple(text.decode() for text in texts)
    yield Found(
      f"{folder}, split {split!r}, example {number}",
      WebExample(
        fields["image"],
        defaults.question,
        answer,
        defaults.task,
        defaults.language,
      ),
    )


def read_tars(pattern: str, defaults: Defaults) -> Iterator[Found]:
  """The samples of the tars that match, sorted by name."""
  paths = sorted(glob.glob(pattern))
  if not paths:
    raise UserError(f"got --input={pattern}, which no tar matches")
  for path in paths:
    try:
      with tarfile.open(path) as tar:
        for key, files in samples(tar):
          where = f"{path}, {key}"
          yield Found(where, from_sample(files, where, defaults))
    except tarfile.ReadError as error:
      raise UserError(
        f"{path}: got a damaged tar ({error}); copy it again"
      ) from error


def samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
  """(key, contents by extension) of each run of files with the same key."""
  files = (
    (*split_name(member.name), member) for member in tar if member.isfile()
  )
  for key, group in itertools.groupby(files, key=lambda file: file[0]):
    yield (
      key,
      {
        extension: tar.extractfile(member).read()
        for _, extension, member in group
      },
    )


def split_name(name: str) -> tuple[str, str]:
  """`"a/b.c.JPG"` -> `("a/b", "c.jpg")`, as WebDataset does."""
  folder, slash, file = name.rpartition("/")
  stem, _, extension = file.partition(".")
  return folder + slash + stem, extension.lower()


def from_sample(
  files: Mapping[str, bytes], where: str, defaults: Defaults
) -> WebExample:
  """One WebDataset sample: an image beside .json or .txt."""
  images = [files[e] for e in IMAGE_EXTENSIONS if e in files]
  if len(images) != 1 or not {"json", "txt"} & files.keys():
    raise UserError(
      f"{where}: got files with the extensions {', '.join(sorted(files))}, "
      f"expected one image ({', '.join(IMAGE_EXTENSIONS)}) and .json or .txt"
    )
  if "json" in files:
    fields = parse_json(files["json"], where)
  else:
    fields = {"prefix": defaults.question, "suffix": files["txt"].decode()}
  return from_fields(fields, images[0], defaults)


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
  """A JSON object."""
  try:
    fields = json.loads(text)
  except ValueError as error:
    raise UserError(
      f"{where}: got text that is not JSON ({error}); repair it"
    ) from error
  if not isinstance(fields, dict):
    raise UserError(
      f"{where}: got {text!r:.80}, expected an object such as "
      '{"image": …, "prefix": …, "suffix": …}'
    )
  return fields


def from_fields(
  fields: Mapping[str, Any], image: bytes, defaults: Defaults
) -> WebExample:
  """An example in big_vision's words: prefix is asked, suffix answered."""
  suffix = fields.get("suffix")
  return WebExample(
    image,
    fields.get("prefix"),
    tuple(suffix) if isinstance(suffix, list) else (suffix,),
    fields.get("task", defaults.task),
    fields.get("language", defaults.language),
  )


def feature(fields: Mapping[str, Any], path: str) -> Any:
  """The value at `path`, e.g. "captions/text"."""
  value = fields
  for name in path.split("/"):
    if not isinstance(value, Mapping) or name not in value:
      raise UserError(
        f"got --answers={path}, expected a path through the features "
        f"{', '.join(fields)}"
      )
    value = value[name]
  return value


# ------------------------------------------------------------------- examples


def detection_answer(
  boxes: Sequence[Sequence[float]], labels: Sequence[str]
) -> str:
  """`"<loc0102><loc0000><loc0511><loc1023> cup ; …"`, as PaliGemma answers.

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
  """The image as it is, or as an RGB JPEG of at most `max_side` pixels a side.

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
  """A checked example as the bytes of its record."""
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


# -------------------------------------------------------------------- writing


def make(
  found: Iterable[Found],
  output_dir: str | Path,
  name: str,
  split: str = "train",
  num_shards: int = 1,
  max_side: int = 512,
) -> list[Path]:
  """Writes all shards or, when anything is wrong, none; returns their paths.

  Args:
    found: the examples, from one of the readers.
    output_dir: gets the shards.
    name: of the data, the first part of the files' names.
    split: e.g. "train".
    num_shards: files to write.
    max_side: larger images are made smaller, pixels.

  Raises:
    UserError: a bad example, by its place, or fewer examples than shards.
    FileExistsError: the folder holds shards of this split already.
  """
  output_dir = local_path(output_dir, "--output_dir")
  existing = sorted(output_dir.glob(f"*-{split}.tfrecord-*"))
  if existing:
    raise FileExistsError(
      f"got an output folder with {existing[0]}, expected none of split "
      f"{split!r}; pass another --output_dir, or remove the files"
    )
  output_dir.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=output_dir) as unfinished:
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
    written = [path.rename(output_dir / path.name) for path in paths]
    lengths = [len(range(i, count, num_shards)) for i in range(num_shards)]
    state_lengths(output_dir, name, split, lengths)
    return written


def state_lengths(folder: Path, name: str, split: str, lengths: Sequence[int]):
  """Adds a split to dataset_info.json, with which readers compare shards."""
  path = folder / "dataset_info.json"
  info = {"name": name, "fileFormat": "tfrecord", "splits": []}
  if path.exists():
    info = parse_json(path.read_text(), str(path))
  others = [each for each in info["splits"] if each["name"] != split]
  stated = {"name": split, "shardLengths": [str(n) for n in lengths]}
  info["splits"] = [*others, stated]
  unfinished = path.with_suffix(".unfinished")
  unfinished.write_text(json.dumps(info, indent=2) + "\n")
  unfinished.replace(path)


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
  """`map` on all CPUs, in order, that holds few items at a time."""
  items = iter(items)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    while chunk := list(itertools.islice(items, CHUNK)):
      yield from pool.map(function, chunk)


def read(args: flags.FlagValues) -> Iterator[Found]:
  """The examples that the flags ask for."""
  defaults = Defaults(args.question, args.task, args.language)
  if args.format == "tfds":
    return read_tfds(args.input, args.input_split, args.answers, defaults)
  if args.format == "webdataset":
    return read_tars(args.input, defaults)
  folder = args.image_folder or Path(args.input).parent
  return read_jsonl(args.input, folder, defaults)


def main(_):
  logging.set_verbosity(logging.ERROR)
  args = flags.FLAGS
  try:
    paths = make(
      read(args),
      args.output_dir,
      args.name,
      args.split,
      args.num_shards,
      args.max_side,
    )
  except (UserError, OSError) as error:
    sys.exit(str(error))
  size = sum(path.stat().st_size for path in paths)
  print(f"{args.output_dir}: {len(paths)} shards, {size / 1e6:.1f} MB")


if __name__ == "__main__":
  # Flags are defined only when this file is the program: absl's names are
  # global, and tests import several programs into one process.
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

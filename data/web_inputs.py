"""Reads formats of image-text data for data/make_web_records.py.

Each reader gives the examples one after the other with the place of each, for
error messages:

  read_jsonl  lines of JSON beside an image folder, as big_vision and PaliGemma
              fine-tune on
  read_tfds   a TFDS version folder, e.g. coco_captions
  read_tars   WebDataset: KEY.jpg or .png beside KEY.json or KEY.txt
"""

import glob
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from rt2_jax import local_copies, storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.web import WebExample

FORMATS = ("jsonl", "tfds", "webdataset")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class Found(NamedTuple):
  """An example and where it was found, for error messages."""

  where: str
  example: WebExample


class Defaults(NamedTuple):
  """What the input does not say."""

  question: str = "Generate caption in en"
  task: str = ""
  language: str = "en"


def read_jsonl(
  path: str | Path, image_folder: str | Path, defaults: Defaults
) -> Iterator[Found]:
  """Reads a JSONL file. Raises UserError naming a bad line."""
  path = storage.locate(path, "--input")
  images = storage.locate(image_folder, "--image_folder")
  if not path.is_file():
    raise UserError(f"got --input={path}, expected a file with JSON lines")
  with (
    local_copies.of(path) as local,
    local.open(encoding="utf-8") as lines,
  ):
    for number, line in enumerate(lines, 1):
      line = line.strip()
      if not line:
        continue
      where = f"{path}, line {number}"
      fields = parse_json(line, where)
      image = images / str(fields.get("image", ""))
      if not image.is_file():
        raise UserError(
          f"{where}: got image {str(image)!r}, which is no file; correct the "
          "line or pass another --image_folder"
        )
      yield Found(where, from_fields(fields, image.read_bytes(), defaults))


def read_tfds(
  folder: str | Path, split: str, answers: str, defaults: Defaults
) -> Iterator[Found]:
  """Reads a TFDS dataset, in the order of its shards.

  Args:
    folder: version folder, e.g. `…/coco_captions/2014/1.1.0`.
    split: e.g. "train".
    answers: the feature that holds the texts, e.g. "captions/text".
    defaults: the question, and what else TFDS does not say.
  """
  with local_copies.of(storage.locate(folder, "--input")) as local:
    data = tfds.builder_from_directory(local).as_dataset(
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
  """Reads the tars that match, sorted by name."""
  paths = find(pattern)
  if not paths:
    raise UserError(f"got --input={pattern}, which no tar matches")
  for path in paths:
    try:
      with local_copies.of(path) as local, tarfile.open(local) as tar:
        for key, files in samples(tar):
          where = f"{path}, {key}"
          yield Found(where, from_sample(files, where, defaults))
    except tarfile.ReadError as error:
      raise UserError(
        f"{path}: got a damaged tar ({error}); copy it again"
      ) from error


def find(pattern: str) -> list[storage.Path]:
  """Returns the files that match, by name."""
  place = storage.locate(pattern, "--input")
  if isinstance(place, storage.Url):
    return sorted(place.parent.glob(place.name))
  return sorted(map(Path, glob.glob(str(place))))


def samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
  """Groups neighbouring files by key: (key, contents by extension)."""
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
  """Splits `"a/b.c.JPG"` into `("a/b", "c.jpg")`, as WebDataset does."""
  folder, slash, file = name.rpartition("/")
  stem, _, extension = file.partition(".")
  return folder + slash + stem, extension.lower()


def from_sample(
  files: Mapping[str, bytes], where: str, defaults: Defaults
) -> WebExample:
  """Parses a WebDataset sample: an image beside .json or .txt."""
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
  """Parses a JSON object. Raises UserError for other text."""
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
  """Makes an example of big_vision's fields: prefix asks, suffix answers."""
  suffix = fields.get("suffix")
  return WebExample(
    image,
    fields.get("prefix"),
    tuple(suffix) if isinstance(suffix, list) else (suffix,),
    fields.get("task", defaults.task),
    fields.get("language", defaults.language),
  )


def feature(fields: Mapping[str, Any], path: str) -> Any:
  """Looks up the value at `path`, e.g. "captions/text"."""
  value = fields
  for name in path.split("/"):
    if not isinstance(value, Mapping) or name not in value:
      raise UserError(
        f"got --answers={path}, expected a path through the features "
        f"{', '.join(fields)}"
      )
    value = value[name]
  return value

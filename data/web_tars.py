"""Tars of image-text samples, as WebDataset and img2dataset write them.

A sample is KEY.jpg, .png or .webp beside KEY.json or KEY.txt. The JSON counts
where it says what is asked or answered (prefix, suffix); that of img2dataset
says where a picture comes from, and the text is the caption.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Iterator, Mapping

from data.web_inputs import Defaults, Found, find, from_fields, parse_json
from rt2_jax import storage
from rt2_jax.byte_ranges import Request, Storage, open_storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.web import WebExample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_SAID = ("prefix", "suffix")

Span = tuple[int, int]  # where a file begins in the tar, and its length
Files = Mapping[str, Span]  # by extension


def read_tars(pattern: str, defaults: Defaults) -> Iterator[Found]:
  """Yields the samples of the tars that match, sorted by name.

  The files of a sample need not stand side by side. A tar that is damaged is
  one bad example, after those that can be found in it.
  """
  paths = find(pattern)
  if not paths:
    raise UserError(f"got --input={pattern}, which no tar matches")
  for path in paths:
    samples, problem = find_samples(path)
    opened = open_storage(str(path))
    for key, files in samples.items():
      load = functools.partial(_load, opened, str(path), files, defaults)
      yield Found(f"{path}, {key}", load)
    if problem:
      yield Found(str(path), functools.partial(_refuse, problem))


def _refuse(problem: Exception) -> WebExample:
  raise UserError(
    f"got a damaged tar ({problem}), expected one that is whole and not "
    "compressed; copy it again"
  )


def find_samples(
  path: storage.Path,
) -> tuple[dict[str, Files], Exception | None]:
  """Finds the files of each key, and what ended the tar too early, if anything.

  Hidden files, as macOS leaves them beside others, and indexes are no samples.
  """
  samples: dict[str, dict[str, Span]] = {}
  try:
    with path.open("rb") as file, tarfile.open(None, "r:", file) as tar:
      for member in tar:
        name = member.name.rpartition("/")[2]
        if member.isfile() and not name.startswith((".", "__")):
          key, extension = split_name(member.name)
          span = member.offset_data, member.size
          samples.setdefault(key, {})[extension] = span
  except (tarfile.TarError, OSError) as error:
    return samples, error
  return samples, None


def split_name(name: str) -> tuple[str, str]:
  """Splits `"a/b.c.JPG"` into `("a/b", "c.jpg")`, as WebDataset does."""
  folder, slash, file = name.rpartition("/")
  stem, _, extension = file.partition(".")
  return folder + slash + stem, extension.lower()


def _load(
  opened: Storage, path: str, files: Files, defaults: Defaults
) -> WebExample:
  """Reads a sample; raises UserError where it is not whole."""
  found = [extension for extension in IMAGE_EXTENSIONS if extension in files]
  texts = [extension for extension in ("json", "txt") if extension in files]
  if len(found) != 1 or not texts:
    raise UserError(
      f"got files with the extensions {', '.join(sorted(files))}, expected one "
      f"image ({', '.join(IMAGE_EXTENSIONS)}) and .json or .txt"
    )
  kinds = (*found, *texts)
  requests = [Request(path, *files[kind]) for kind in kinds]
  data = dict(zip(kinds, opened.read(requests), strict=True))
  fields = parse_json(data["json"]) if "json" in data else {}
  if "txt" in data and not any(fields.get(name) for name in _SAID):
    fields = {"suffix": data["txt"]}
  return from_fields(fields, data[found[0]], defaults)

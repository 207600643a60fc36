"""Reads formats of image-text data for data/make_web_records.py.

Each reader says where the examples are, one after the other; an example itself
is read when it is asked for, so that one that cannot be read is no reason to
stop:

  read_jsonl  lines of JSON beside an image folder, as big_vision and PaliGemma
              fine-tune on

LLaVA's and COCO's JSON are read in data/web_json.py, tars of WebDataset and
img2dataset in data/web_tars.py, TFDS's folders in data/web_tfds.py.
"""

from __future__ import annotations

import codecs
import functools
import glob
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rt2_jax import local_copies, storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.web import WebExample

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Found(NamedTuple):
  """Where an example is, for error messages, and how it is read.

  `load` raises UserError where it cannot be; the message names no place.
  """

  where: str
  load: Callable[[], WebExample]


class Defaults(NamedTuple):
  """What the input does not say."""

  question: str = "Generate caption in en"
  task: str = ""
  language: str = "en"


def read_jsonl(
  path: str | Path, image_folder: str | Path, defaults: Defaults
) -> Iterator[Found]:
  """Yields the lines of a JSONL file in UTF-8, or in UTF-16 with a mark."""
  path = storage.locate(path, "--input")
  images = storage.locate(image_folder, "--image_folder")
  if not path.is_file():
    raise UserError(f"got --input={path}, expected a file with JSON lines")
  with local_copies.of(path) as local:
    for number, line in enumerate(_lines(local), 1):
      if line.strip():
        load = functools.partial(_from_line, line, images, defaults)
        yield Found(f"{path}, line {number}", load)


def _lines(path: Path) -> Iterator[bytes]:
  """Yields lines in UTF-8: a line that is not is one bad line, not the end."""
  with path.open("rb") as file:
    start = file.read(3)
    if start[:2] in _UTF16:
      yield from _utf16_lines(path)
      return
    file.seek(len(codecs.BOM_UTF8) if start == codecs.BOM_UTF8 else 0)
    yield from file


def _utf16_lines(path: Path) -> Iterator[bytes]:
  """Yields lines in UTF-8; half a character makes its own line unreadable."""
  half = "surrogatepass"
  with path.open(encoding="utf-16", errors=half) as lines:
    try:
      yield from (line.encode(errors=half) for line in lines)
    except UnicodeDecodeError:  # the file ends within a character
      yield b"\xff"


def _from_line(
  line: bytes, folder: storage.Path, defaults: Defaults
) -> WebExample:
  fields = parse_json(line)
  return from_fields(fields, read_image(folder, fields.get("image")), defaults)


def parse_json(text: bytes) -> dict[str, Any]:
  """Reads a JSON object; raises UserError for anything else."""
  try:
    fields = json.loads(text.decode())
  except (ValueError, RecursionError) as error:
    raise UserError(
      f"got text that is not JSON in UTF-8 ({error}); repair it"
    ) from error
  if not isinstance(fields, dict):
    raise UserError(
      f"got {text.decode().strip()!r:.80}, expected an object such as "
      '{"image": …, "prefix": …, "suffix": …}'
    )
  return fields


def read_image(folder: storage.Path, name: Any) -> bytes:
  """Reads the picture of an example; raises UserError if there is none."""
  path = folder / str(name or "")
  try:
    with storage.named_in_errors(path, verb="read"):
      return path.read_bytes()
  except (OSError, ValueError) as error:  # ValueError: a NUL in the name
    raise UserError(
      f"got image {str(path)!r}, which is no file; correct the example or pass "
      "another --image_folder"
    ) from error


def from_fields(
  fields: Mapping[str, Any], image: bytes, defaults: Defaults
) -> WebExample:
  """Makes an example in big_vision's words: prefix is asked, suffix answered.

  A field that is null is as good as none, a number is written out, and white
  space around texts is no part of them.

  Raises:
    UserError: no question, an answer that is no text, or one that is empty.
  """
  suffix = fields.get("suffix")
  answers = suffix if isinstance(suffix, list) else [suffix]
  asked = fields.get("prefix")
  prefix = defaults.question if asked is None else asked
  return WebExample(
    image,
    _checked_texts("question (prefix)", [prefix])[0],
    _checked_texts("answer (suffix)", answers),
    _text(fields.get("task") or defaults.task) or "",
    _text(fields.get("language") or defaults.language) or "",
  )


def _checked_texts(name: str, values: Sequence[Any]) -> tuple[str, ...]:
  texts = tuple(map(_text, values))
  if not texts or not all(texts):
    raise UserError(
      f"got {list(values)} as {name}, expected text that is not empty; repair "
      "or remove this example"
    )
  return texts


def _text(value: Any) -> str | None:
  """Reads a text; None where there is none.

  Raises:
    UserError: bytes that are not UTF-8, or half a character.
  """
  if isinstance(value, int | float) and not isinstance(value, bool):
    return str(value) if math.isfinite(value) else None
  try:
    if isinstance(value, bytes):
      value = value.decode("utf-8-sig")
    if not isinstance(value, str):
      return None
    value.encode()
  except UnicodeError as error:
    raise UserError(
      f"got a text that is not UTF-8 ({error}); repair or remove this example"
    ) from error
  return value.replace("\r\n", "\n").strip("\ufeff \t\r\n")


def find(pattern: str) -> list[storage.Path]:
  """Returns the files that match, by name."""
  place = storage.locate(pattern, "--input")
  if place.exists():  # its name may hold brackets
    return [place]
  if isinstance(place, storage.Url):
    return sorted(place.parent.glob(place.name))
  return sorted(map(Path, glob.glob(str(place))))

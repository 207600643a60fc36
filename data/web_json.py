"""LLaVA's and COCO's JSON: one file about many pictures.

read_llava  a JSON list of conversations, as LLaVA is instructed with
read_coco   COCO's annotations: captions, or boxes with categories
"""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.detection import detection_answer
from data.web_inputs import Defaults, Found, from_fields, read_image
from rt2_jax import storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.web import WebExample

_IMAGE_TAG = "<image>"  # where LLaVA shows the picture
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


def read_llava(
  path: str | Path, image_folder: str | Path, defaults: Defaults
) -> Iterator[Found]:
  """Yields every question with its answer of a list of conversations.

  A conversation without a picture is left out, and what a system says in one.
  """
  entries = _read_whole(path)
  images = storage.locate(image_folder, "--image_folder")
  if not isinstance(entries, list):
    raise UserError(f"{path}: got no list, expected LLaVA's conversations")
  for number, entry in enumerate(entries):
    where = f"{path}, entry {number}"
    if not isinstance(entry, dict):
      yield Found(where, functools.partial(_refuse, entry))
      continue
    if not entry.get("image"):
      continue
    turns = [
      turn
      for turn in _as_list(entry.get("conversations"))
      if not (isinstance(turn, Mapping) and turn.get("from") == "system")
    ]
    for turn in range(0, max(len(turns) - 1, 1), 2):
      load = functools.partial(
        _from_turns,
        turns[turn : turn + 2],
        entry,
        images,
        defaults,
      )
      yield Found(f"{where}, turn {turn}", load)


def _as_list(turns: Any) -> list[Any]:
  """Makes one bad turn of conversations that are no list."""
  return turns if isinstance(turns, list) else [turns]


def _refuse(entry: Any) -> WebExample:
  raise UserError(f"got {entry!r:.80}, expected an object; repair it")


def _from_turns(
  turns: Sequence[Mapping[str, Any]],
  entry: Mapping[str, Any],
  folder: storage.Path,
  defaults: Defaults,
) -> WebExample:
  try:
    asked, answered = turns
    if asked["from"] not in _ASKS or answered["from"] not in _ANSWERS:
      raise ValueError("of other speakers")
    question = asked["value"].replace(_IMAGE_TAG, " ")
    fields = {"prefix": question, "suffix": answered["value"]}
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise UserError(
      f"got turns {turns!r:.80}, expected a question and an answer with the "
      "fields from (human, then gpt) and value; repair them"
    ) from error
  return from_fields(fields, read_image(folder, entry["image"]), defaults)


def read_coco(
  path: str | Path, image_folder: str | Path, defaults: Defaults
) -> Iterator[Found]:
  """Yields the images of COCO's annotations, with all that is said of each.

  Captions answer the default question. Boxes answer `detect cat ; dog`, in the
  words of PaliGemma.
  """
  said = _read_whole(path)
  folder = storage.locate(image_folder, "--image_folder")
  try:
    of_image: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in said["annotations"]:
      of_image.setdefault(annotation["image_id"], []).append(annotation)
    images = {image["id"]: image for image in said["images"]}
    names = {c["id"]: c["name"] for c in said.get("categories", ())}
  except (LookupError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path}: got a file without {error}, expected COCO's images, "
      "annotations and categories"
    ) from error
  for number, told in of_image.items():
    load = functools.partial(
      _from_annotations,
      told,
      images.get(number),
      names,
      folder,
      defaults,
    )
    yield Found(f"{path}, image {number}", load)


def _from_annotations(
  annotations: Sequence[Mapping[str, Any]],
  image: Mapping[str, Any] | None,
  names: Mapping[Any, str],
  folder: storage.Path,
  defaults: Defaults,
) -> WebExample:
  if image is None:
    raise UserError("got annotations of an image that is not among the images")
  fields: dict[str, Any] = {"suffix": [a.get("caption") for a in annotations]}
  if "caption" not in annotations[0]:
    try:
      fields = _detection(annotations, image, names)
    except (LookupError, TypeError, ValueError, ZeroDivisionError) as error:
      raise UserError(
        f"got annotations that cannot be read ({error!r}), expected a caption, "
        "or bbox and category_id"
      ) from error
  return from_fields(
    fields, read_image(folder, image.get("file_name")), defaults
  )


def _detection(
  annotations: Sequence[Mapping[str, Any]],
  image: Mapping[str, Any],
  names: Mapping[Any, str],
) -> dict[str, Any]:
  """Writes boxes x, y, width, height in pixels as PaliGemma's words."""
  height, width = float(image["height"]), float(image["width"])
  boxes, labels = [], []
  for annotation in annotations:
    x, y, w, h = map(float, annotation["bbox"])
    corners = (y / height, x / width, (y + h) / height, (x + w) / width)
    # Some boxes end a fraction of a pixel outside.
    boxes.append(np.clip(corners, 0, 1).tolist())
    labels.append(names[annotation["category_id"]])
  kinds = " ; ".join(dict.fromkeys(labels))
  return {
    "prefix": f"detect {kinds}",
    "suffix": detection_answer(boxes, labels),
    "task": "detect",
  }


def _read_whole(path: str | Path) -> Any:
  """Reads a JSON file in UTF-8 or UTF-16."""
  try:
    content = storage.locate(path, "--input").read_bytes()
    return json.loads(content.removeprefix(codecs.BOM_UTF8))
  except (OSError, ValueError) as error:
    raise UserError(
      f"got --input={path}, which does not read ({error}), expected a JSON file"
    ) from error

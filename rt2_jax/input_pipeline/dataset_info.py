"""dataset_info.json: what TFDS states of a dataset version's files."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from rt2_jax.byte_ranges import Storage
from rt2_jax.errors import UserError

FILE = "dataset_info.json"


class Info(NamedTuple):
  """The parts of dataset_info.json that count.

  Attributes:
    dataset: its name; "" where none is stated.
    lengths: records of each split's shards; None where they are not stated.
    templates: pattern of each split's file names; "" for the usual one.
  """

  dataset: str
  lengths: dict[str, list[int] | None]
  templates: dict[str, str]


def read(storage: Storage, folder: str) -> Info | None:
  """Reads dataset_info.json, see `_parse`; None without the file."""
  names = [n for n in storage.names(folder) if n.endswith(f"/{FILE}")]
  if not names:
    return None
  return _parse(bytes(storage.whole(names[0])), names[0])


def _parse(data: bytes, path: str) -> Info:
  """Parses the dataset's name, and the records of each split's shards.

  Either may not be stated: "" and None.

  Raises:
    UserError: the file is cut off, or of another kind.
  """
  try:
    info = json.loads(data)
    lengths = {s["name"]: _numbers(s) for s in info["splits"]}
    templates = {
      s["name"]: s.get("filepathTemplate", "") for s in info["splits"]
    }
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path}: got a file that cannot be read ({error!r}), expected the one "
      "that TFDS wrote, with its splits; copy it again"
    ) from error
  kind = info.get("fileFormat", "tfrecord")
  if kind != "tfrecord":
    raise UserError(
      f"{path}: got fileFormat {kind!r}, expected 'tfrecord'; convert it with "
      "`tfds convert_format --dataset_dir=THIS --out_file_format=tfrecord "
      "--out_path=OTHER`, which needs `pip install apache-beam`"
    )
  return Info(info.get("name", ""), lengths, templates)


def _numbers(split: dict[str, Any]) -> list[int] | None:
  lengths = split.get("shardLengths")
  return None if lengths is None else [int(length) for length in lengths]

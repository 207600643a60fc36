"""Image-text datasets of TFDS, such as coco_captions."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.web_inputs import Defaults, Found, from_fields
from rt2_jax import local_copies, storage
from rt2_jax.errors import UserError


def read_tfds(
  folder: str | Path, split: str, answers: str, defaults: Defaults
) -> Iterator[Found]:
  """Yields the examples of a TFDS dataset, in the order of its shards.

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
      texts = np.atleast_1d(_feature(fields, answers)).tolist()
      load = functools.partial(
        from_fields, {"suffix": texts}, fields["image"], defaults
      )
      yield Found(f"{folder}, split {split!r}, example {number}", load)


def _feature(fields: Mapping[str, Any], path: str) -> Any:
  """Finds the value at `path`, e.g. "captions/text"."""
  value = fields
  for name in path.split("/"):
    if not isinstance(value, Mapping) or name not in value:
      raise UserError(
        f"got --answers={path}, expected a path through the features "
        f"{', '.join(fields)}"
      )
    value = value[name]
  return value

"""Reads files of named arrays, one array at a time.

Opening reads names, shapes and types only. Nothing is ever unpickled: a pickle
can run any program.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from rt2_jax import storage, trees
from rt2_jax.errors import UserError
from rt2_jax.weights.npz import open_npz
from rt2_jax.weights.stored_arrays import (
  DTYPES,
  File,
  Shape,
  Stored,
  refuse_pickle,
)

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LENGTH = struct.Struct("<Q")  # of a safetensors header


def open_big_vision(path: storage.Path) -> dict[str, Stored]:
  """Opens the parameters in an `.npz` of big_vision, and stacks the layers.

  Raises:
    UserError: a file that cannot be read, or a layer that is missing or of
      another shape.
  """
  arrays = open_npz(path)
  if any(name.startswith("params/") for name in arrays):
    # The rest is the optimizer's.
    arrays = {
      name.removeprefix("params/"): array
      for name, array in arrays.items()
      if name.startswith("params/")
    }
  weights, layers = {}, {}
  for name, array in arrays.items():
    stacked, layer = trees.split_layer(name)
    if layer is None:
      weights[name] = array
    else:
      layers.setdefault(stacked, {})[layer] = array
  for name, by_index in layers.items():
    rows = [by_index[i] for i in sorted(by_index)]
    shapes = {row.shape for row in rows}
    if sorted(by_index) != list(range(len(rows))) or len(shapes) > 1:
      raise UserError(
        f"{path}: got layers {sorted(by_index)} of {name!r} with shapes "
        f"{sorted(shapes)}, expected every layer from 0 on, of one shape"
      )
    shape = (len(rows), *rows[0].shape)
    dtype = widest(row.dtype for row in rows)
    weights[name] = Stored(
      shape, dtype, functools.partial(_read_rows, rows, shape, dtype)
    )
  return weights


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
  """Returns the type that holds all these types without rounding."""
  dtypes = set(dtypes)
  if len(dtypes) == 1:
    return dtypes.pop()
  double = np.dtype(np.float64)
  return double if double in dtypes else np.dtype(np.float32)


def _read_rows(rows: list[Stored], shape: Shape, dtype: np.dtype) -> np.ndarray:
  leaf = np.empty(shape, dtype)
  for i, row in enumerate(rows):
    leaf[i] = row.read()
  return leaf


def open_safetensors(folder: storage.Path) -> dict[str, Stored]:
  """Opens the tensors of a Hugging Face folder.

  Reads the files that transformers would choose: `model.safetensors`, or else
  the shards of its index.

  Raises:
    UserError: no such file, a missing or damaged one, quantised tensors, a
      tensor in two shards, or one that the index names and no shard has.
  """
  indexed, paths = _chosen_files(folder)
  tensors, places = {}, {}
  for path in paths:
    for name, tensor in open_shard(path).items():
      if name in tensors:
        raise UserError(
          f"{folder}: got {name!r} in {places[name]} and in {path.name}, "
          "expected every tensor in one shard; copy the folder again"
        )
      places[name], tensors[name] = path.name, tensor
  lost = [name for name in indexed if name not in tensors]
  if lost:
    raise UserError(
      f"{folder}: got no tensor {', '.join(map(repr, lost))} in any shard, "
      f"expected all that {INDEX} names; copy the folder again"
    )
  return tensors


def open_shard(path: storage.Path) -> dict[str, Stored]:
  """Opens one safetensors file: its length, a JSON header, bytes."""
  try:
    source = File(path)
    (length,) = _LENGTH.unpack(source.read(0, _LENGTH.size))
    start = _LENGTH.size + length
    if start > source.size:
      raise ValueError(f"a header of {length} bytes")
    header = json.loads(source.read(_LENGTH.size, length).tobytes())
    header.pop("__metadata__", None)
    found = {
      name: _find_tensor(source, start, name, fields)
      for name, fields in header.items()
    }
  except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"got {path}, which is not a whole safetensors file ({error}); copy it "
      "again"
    ) from error
  return found


def _find_tensor(
  source: File, start: int, name: str, fields: dict[str, Any]
) -> Stored:
  """Describes a tensor of a header whose bytes begin at `start`."""
  dtype = DTYPES.get(fields["dtype"])
  if dtype is None:
    raise UserError(
      f"{source.path}: got {name!r} as {fields['dtype']}, expected one of "
      f"{', '.join(DTYPES)}; use weights that are not quantised"
    )
  shape = tuple(fields["shape"])
  first, stop = fields["data_offsets"]
  if stop - first != math.prod(shape) * dtype.itemsize or first < 0:
    raise ValueError(f"{stop - first} bytes of {name!r} with shape {shape}")
  if start + stop > source.size:
    raise ValueError(f"it ends inside {name!r}")

  def read() -> np.ndarray:
    return source.read(start + first, stop - first).view(dtype).reshape(shape)

  return Stored(shape, dtype, read)


def _chosen_files(
  folder: storage.Path,
) -> tuple[list[str], list[storage.Path]]:
  """Returns the tensors that an index names, if any, and the files to read."""
  if (folder / ONE_FILE).is_file():
    # An index beside it is left over from an older save.
    return [], [folder / ONE_FILE]
  if not (folder / INDEX).is_file():
    raise _nothing_to_read(folder)
  weight_map = _read_index(folder / INDEX)
  paths = [folder / name for name in sorted(set(weight_map.values()))]
  missing = [path.name for path in paths if not path.is_file()]
  if missing:
    raise UserError(
      f"{folder}: got no {', '.join(missing)}, which {INDEX} names; copy the "
      "folder again"
    )
  return list(weight_map), paths


def _read_index(path: storage.Path) -> dict[str, str]:
  """Reads which shard holds each tensor."""
  weight_map = read_json(path).get("weight_map")
  good = isinstance(weight_map, dict) and all(
    isinstance(name, str) and pathlib.PurePosixPath(name).name == name
    for name in weight_map.values()
  )
  if not good or not weight_map:
    raise UserError(
      f"{path}: got no 'weight_map' from tensors to files beside it, which "
      "transformers writes; copy the folder again"
    )
  return weight_map


def read_json(path: storage.Path) -> dict:
  """Reads the object in a JSON file.

  Raises:
    UserError: another content.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(
      f"got {path}, which is not a whole JSON file ({error}); copy it again"
    ) from error
  if not isinstance(content, dict):
    raise UserError(
      f"{path}: got a JSON {type(content).__name__}, expected an object of "
      "named fields"
    )
  return content


def _nothing_to_read(folder: storage.Path) -> UserError:
  for path in sorted(folder.iterdir()):
    refuse_pickle(path)
  others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
  return UserError(
    f"got {folder} with {others or 'no .safetensors file'}, expected "
    f"{ONE_FILE}, or {INDEX} and its shards"
  )

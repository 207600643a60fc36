"""Files of named arrays: what is in them, and one array at a time.

Opening reads names, shapes and types only. Nothing is ever unpickled: a pickle
can run any program.
"""

from __future__ import annotations

import functools
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from rt2_jax import trees
from rt2_jax.errors import UserError

Path = str | pathlib.Path
Shape = tuple[int, ...]

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Stored(NamedTuple):
  """An array in a file; `read` returns it, in this shape and type."""

  shape: Shape
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def open_npz(path: pathlib.Path) -> dict[str, Stored]:
  """The arrays of an `.npz` file; two bytes without a type are bfloat16.

  Raises:
    UserError: not a whole `.npz` file, or anything but floats in it.
  """
  _refuse_pickle(path)
  headers = {}
  try:
    with zipfile.ZipFile(path) as archive:
      for member in archive.namelist():
        with archive.open(member) as file:
          headers[member.removesuffix(".npy")] = _read_header(file)
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(
      f"got {path}, which is not a whole .npz file ({error}); copy it again"
    ) from error
  objects = [name for name, (_, dtype) in headers.items() if dtype.hasobject]
  if objects:
    raise UserError(
      f"{path}: got arrays of Python objects ({', '.join(objects)}), which are "
      "pickled and could run any program, expected numbers"
    )

  def read(name: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(headers[name][1])

  return {
    name: Stored(shape, dtype, functools.partial(read, name))
    for name, (shape, dtype) in headers.items()
  }


def open_big_vision(path: pathlib.Path) -> dict[str, Stored]:
  """The parameters in an `.npz` of big_vision, with the layers stacked.

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
  """The type that holds arrays of all these types without rounding."""
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


def _read_header(file) -> tuple[Shape, np.dtype]:
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  else:
    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
  return shape, _DTYPES["BF16"] if dtype == "V2" else dtype


def open_safetensors(folder: pathlib.Path) -> dict[str, Stored]:
  """The tensors of a Hugging Face folder, from the files that transformers
  would choose: `model.safetensors`, or else the shards of its index.

  Raises:
    UserError: no such file, a missing or damaged one, quantised tensors, a
      tensor in two shards, or one that the index names and no shard has.
  """
  indexed, paths = _chosen_files(folder)
  tensors, places = {}, {}
  for path in paths:
    with _open(path) as file:
      for name in file.keys():  # noqa: SIM118, it is not a dictionary
        if name in tensors:
          raise UserError(
            f"{folder}: got {name!r} in {places[name]} and in {path.name}, "
            "expected every tensor in one shard; copy the folder again"
          )
        view = file.get_slice(name)
        dtype = _DTYPES.get(view.get_dtype())
        if dtype is None:
          raise UserError(
            f"{path}: got {name!r} as {view.get_dtype()}, expected one of "
            f"{', '.join(_DTYPES)}; use weights that are not quantised"
          )
        read = functools.partial(_read_tensor, path, name)
        places[name] = path.name
        tensors[name] = Stored(tuple(view.get_shape()), dtype, read)
  lost = [name for name in indexed if name not in tensors]
  if lost:
    raise UserError(
      f"{folder}: got no tensor {', '.join(map(repr, lost))} in any shard, "
      f"expected all that {INDEX} names; copy the folder again"
    )
  return tensors


def _read_tensor(path: pathlib.Path, name: str) -> np.ndarray:
  # Opened anew, so that what was read before does not stay mapped.
  with _open(path) as file:
    return file.get_tensor(name)


def _chosen_files(
  folder: pathlib.Path,
) -> tuple[list[str], list[pathlib.Path]]:
  """The tensors that an index names, if one counts, and the files to read."""
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


def _read_index(path: pathlib.Path) -> dict[str, str]:
  """Tensor -> the shard that holds it."""
  weight_map = read_json(path).get("weight_map")
  good = isinstance(weight_map, dict) and all(
    isinstance(name, str) and pathlib.Path(name).name == name
    for name in weight_map.values()
  )
  if not good or not weight_map:
    raise UserError(
      f"{path}: got no 'weight_map' from tensors to files beside it, which "
      "transformers writes; copy the folder again"
    )
  return weight_map


def read_json(path: pathlib.Path) -> dict:
  """The object in a JSON file.

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


def _nothing_to_read(folder: pathlib.Path) -> UserError:
  for path in sorted(folder.iterdir()):
    _refuse_pickle(path)
  others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
  return UserError(
    f"got {folder} with {others or 'no .safetensors file'}, expected "
    f"{ONE_FILE}, or {INDEX} and its shards"
  )


def _open(path: pathlib.Path):
  try:
    return safetensors.safe_open(path, framework="numpy")
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"got {path}, which is not a whole safetensors file ({error}); copy it "
      "again"
    ) from error


def _refuse_pickle(path: pathlib.Path):
  if path.suffix in _PICKLES:
    raise UserError(
      f"got {path}, a pickled file, which could run any program when opened, "
      "expected .npz or .safetensors; convert it where you trust it"
    )

"""Files of named arrays: what is in them, and one array at a time.

Opening reads names and shapes only. Nothing is ever unpickled: a pickle can run
any program.
"""

from __future__ import annotations

import json
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import safetensors

Shape = tuple[int, ...]

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_INDEX = "model.safetensors.index.json"


def refuse_pickle(path: pathlib.Path):
  """Raises ValueError for a file that would have to be unpickled."""
  if path.suffix in _PICKLES:
    raise ValueError(
      f"got {path}, a pickled file, which can run any program when it is "
      "opened, expected .npz or .safetensors; convert it where you trust it"
    )


class Npz:
  """An `.npz` archive of numeric arrays.

  Attributes:
    path: where it is.
    shapes: name -> shape.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the headers.

    Raises:
      ValueError: not an `.npz` file, or arrays of Python objects in it.
    """
    refuse_pickle(path)
    self.path = path
    self.shapes: dict[str, Shape] = {}
    objects = []
    try:
      with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
          name = member.removesuffix(".npy")
          with archive.open(member) as file:
            self.shapes[name], dtype = _read_header(file)
          if dtype.hasobject:
            objects.append(name)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
      raise ValueError(
        f"got {path}, which is not a whole .npz file ({error}); copy it again"
      ) from error
    if objects:
      raise ValueError(
        f"{path}: got arrays of Python objects ({', '.join(objects)}), which "
        "are pickled and can run any program, expected numbers"
      )

  def read(self, name: str) -> np.ndarray:
    """One array; two bytes of no type are bfloat16, as numpy stores it."""
    with zipfile.ZipFile(self.path) as archive:
      with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array


def _read_header(file) -> tuple[Shape, np.dtype]:
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    header = np.lib.format.read_array_header_1_0(file)
  else:
    header = np.lib.format.read_array_header_2_0(file)
  return header[0], header[2]


class SafetensorsFolder:
  """A Hugging Face folder: config.json and one or more safetensors files.

  Attributes:
    path: where it is.
    config: the fields of config.json.
    shapes: name -> shape.
  """

  def __init__(self, path: pathlib.Path):
    """Reads config.json.

    Raises:
      ValueError: no config.json.
    """
    self.path = path
    config = path / "config.json"
    if not config.is_file():
      raise ValueError(
        f"got {path} without config.json, expected a Hugging Face folder"
      )
    self.config = json.loads(config.read_text())
    self.shapes: dict[str, Shape] = {}
    self._files: dict[str, pathlib.Path] = {}

  def open(self):
    """Reads names and shapes.

    Raises:
      ValueError: no safetensors file, or one that is missing or damaged.
    """
    for file in self._list_files():
      with _open(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118  (not a dictionary)
          self.shapes[name] = tuple(tensors.get_slice(name).get_shape())
          self._files[name] = file

  def read(self, name: str) -> np.ndarray:
    """One array. Opens its file anew, so that no page of it stays mapped."""
    with _open(self._files[name]) as tensors:
      return tensors.get_tensor(name)

  def _list_files(self) -> list[pathlib.Path]:
    index = self.path / _INDEX
    if index.is_file():
      names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
      names = sorted(file.name for file in self.path.glob("*.safetensors"))
    missing = [name for name in names if not (self.path / name).is_file()]
    if missing:
      raise ValueError(
        f"{self.path}: got no {', '.join(missing)}, which {_INDEX} names; copy "
        "the folder again"
      )
    if not names:
      for file in self.path.iterdir():
        refuse_pickle(file)
      raise ValueError(f"got {self.path} without any *.safetensors file")
    return [self.path / name for name in names]


def _open(file: pathlib.Path):
  try:
    return safetensors.safe_open(file, framework="numpy")
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(
      f"got {file}, which is not a whole safetensors file ({error}); copy it "
      "again"
    ) from error

"""One file of weights: stretches of its bytes, wherever it lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

from rt2_jax import storage
from rt2_jax.byte_ranges import Request, open_storage
from rt2_jax.errors import UserError

Path = str | os.PathLike
Shape = tuple[int, ...]

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_RANGE = 8 * 2**20  # bytes of one request to an object store
_AT_ONCE = 64 * _RANGE  # that are held twice


class Stored(NamedTuple):
  """An array in a file; `read` returns it, in this shape and type."""

  shape: Shape
  dtype: np.dtype
  read: Callable[[], np.ndarray]


class File:
  """An open file of weights: stretches of its bytes, wherever it lies."""

  def __init__(self, path: storage.Path):
    """Reads nothing yet.

    Raises:
      OSError: no such file.
      UserError: its store refuses.
    """
    self.path = path
    self._ranges = open_storage(str(path))
    self._version = self._ranges.version(str(path))
    (self.size,) = self._ranges.sizes([str(path)])

  def read(self, start: int, length: int) -> np.ndarray:
    """Reads uint8[length], in many requests at once from an object store.

    Raises:
      UserError: the file ends before, or has changed since it was opened.
    """
    data = np.empty(length, np.uint8)
    if isinstance(self.path, storage.Url):
      self._read_ranges(start, data)
    else:
      with self.path.open("rb") as file:
        file.seek(start)
        data = data[: file.readinto(data)]
    if self._ranges.version(str(self.path)) != self._version:
      raise UserError(
        f"got {self.path}, which changed while it was read, expected a file "
        "that nobody writes; start again when it is whole"
      )
    if len(data) < length:
      raise UserError(
        f"got {self.path}, which ends inside an array; copy it again"
      )
    return data

  def _read_ranges(self, start: int, data: np.ndarray):
    for first in range(0, len(data), _AT_ONCE):
      stop = min(first + _AT_ONCE, len(data))
      places = range(first, stop, _RANGE)
      parts = self._ranges.read(
        [
          Request(str(self.path), start + place, min(_RANGE, stop - place))
          for place in places
        ]
      )
      for place, part in zip(places, parts, strict=True):
        data[place : place + len(part)] = np.frombuffer(part, np.uint8)


def refuse_pickle(path: storage.Path):
  """Raises UserError for a file that could run any program."""
  if path.suffix in _PICKLES:
    raise UserError(
      f"got {path}, a pickled file, which could run any program when opened, "
      "expected .npz or .safetensors; convert it where you trust it"
    )

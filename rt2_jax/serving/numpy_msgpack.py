"""msgpack with openpi's extension for numpy arrays; numpy and msgpack only.

An array is the map `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, a
numpy scalar `{b"__npgeneric__": True, b"data", b"dtype"}` (openpi-client,
`msgpack_numpy.py`). Arrays of objects, structures and complex numbers do not
exist here, nor do msgpack's own extension types: no message makes the reader
build anything but plain values and arrays of the bytes that were sent.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

from rt2_jax.errors import UserError

_KINDS = "biuf"  # bool, signed, unsigned, float
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAX_DIMENSIONS = 6
_MAX_ENTRIES = 4096  # of a list or map; arrays are bytes and not counted
_MAX_SHOWN = 80  # characters of a wrong value in an error


def packb(value: Any) -> bytes:
  """Encodes plain values and arrays.

  Raises:
    TypeError: another value, or an array of objects, structures or complex
      numbers.
  """
  return msgpack.packb(value, default=_encode)


def unpackb(data: bytes) -> Any:
  """Decodes what `packb` encoded; arrays share the memory of `data`.

  Raises:
    UserError: not msgpack, an array whose size, shape or type do not fit its
      bytes, or an extension type.
  """
  try:
    return msgpack.unpackb(
      data,
      object_hook=_decode,
      ext_hook=_refuse_extension,
      strict_map_key=False,
      max_array_len=_MAX_ENTRIES,
      max_map_len=_MAX_ENTRIES,
    )
  except UserError:
    raise
  except (ValueError, TypeError, RecursionError, msgpack.StackError) as error:
    raise UserError(
      f"got {len(data)} bytes that are no msgpack message "
      f"({type(error).__name__}: {error!s:.{_MAX_SHOWN}}), expected one map"
    ) from error


def _encode(value: Any) -> Any:
  if isinstance(value, np.ndarray | np.generic):
    if value.dtype.kind not in _KINDS:
      raise TypeError(
        f"got an array of {value.dtype}, expected numbers or booleans"
      )
    if isinstance(value, np.ndarray):
      return {
        b"__ndarray__": True,
        b"data": value.tobytes(),
        b"dtype": value.dtype.str,
        b"shape": value.shape,
      }
    return {
      b"__npgeneric__": True,
      b"data": value.item(),
      b"dtype": value.dtype.str,
    }
  raise TypeError(
    f"got {type(value).__name__} in a message, expected plain values and arrays"
  )


def _decode(value: dict) -> Any:
  if b"__ndarray__" in value:
    return _array(value)
  if b"__npgeneric__" in value:
    number = value.get(b"data")
    if not isinstance(number, bool | int | float):
      raise UserError(f"got a scalar of {number!r:.{_MAX_SHOWN}} in a message")
    try:
      return _dtype(value).type(number)
    except OverflowError as error:
      raise UserError(
        f"got a scalar out of its type's range: {error}"
      ) from error
  return value


def _array(value: dict) -> np.ndarray:
  """Checks type, shape and size before it makes an array of them."""
  dtype, data, shape = _dtype(value), value.get(b"data"), value.get(b"shape")
  is_shape = isinstance(shape, list) and all(
    type(side) is int and side >= 0 for side in shape
  )
  if not is_shape or len(shape) > _MAX_DIMENSIONS:
    raise UserError(
      f"got an array of shape {shape!r:.{_MAX_SHOWN}}, expected at most "
      f"{_MAX_DIMENSIONS} whole numbers"
    )
  size = math.prod(shape) * dtype.itemsize
  if not isinstance(data, bytes) or len(data) != size:
    length = len(data) if isinstance(data, bytes) else "no"
    raise UserError(
      f"got an array {dtype}{shape} with {length} bytes, expected {size}"
    )
  return np.frombuffer(data, dtype).reshape(shape)


def _dtype(value: dict) -> np.dtype:
  name = value.get(b"dtype")
  if not isinstance(name, str) or not _DTYPE.fullmatch(name):
    raise UserError(
      f"got an array of type {name!r:.{_MAX_SHOWN}}, expected one such as "
      "'|u1', '<f4' or '<i8'"
    )
  return np.dtype(name)


def _refuse_extension(code: int, data: bytes) -> None:
  raise UserError(
    f"got msgpack's extension type {code} with {len(data)} bytes, expected "
    "plain values and arrays"
  )

"""Messages between the program and its simulation workers.

A message is JSON, followed by the bytes of its arrays. Unlike pickled arrays it
can be read by another Python and another numpy. Needs Python 3.9.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

_HEADER = struct.Struct("<Q")
_ARRAY = "__array__"


def dumps(message: Any) -> bytes:
  """Encodes JSON values, arrays among them; tuples become lists.

  Raises:
    TypeError, ValueError: another value, or a float that is not finite.
  """
  arrays: list[bytes] = []

  def encode(value: Any) -> Any:
    if isinstance(value, np.generic):
      return value.item()
    if isinstance(value, np.ndarray):
      arrays.append(np.ascontiguousarray(value).tobytes())
      return {_ARRAY: [value.dtype.str, list(value.shape)]}
    raise TypeError(
      f"got {type(value).__name__} in a worker's message, expected JSON values "
      "and arrays"
    )

  text = json.dumps(message, default=encode, allow_nan=False).encode()
  return b"".join([_HEADER.pack(len(text)), text, *arrays])


def loads(data: bytes) -> Any:
  """Decodes what `dumps` encoded; arrays are copies that can be written."""
  (length,) = _HEADER.unpack_from(data)
  start = _HEADER.size + length
  text = data[_HEADER.size : start].decode()

  # JSON is decoded in the order in which it was encoded: inner objects in the
  # order of the text, and an array's object holds no other.
  def decode(value: dict[str, Any]) -> Any:
    nonlocal start
    if list(value) != [_ARRAY]:
      return value
    dtype, shape = value[_ARRAY]
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array = np.frombuffer(data, dtype, int(np.prod(shape)), start)
    start += size
    return array.reshape(shape).copy()

  return json.loads(text, object_hook=decode)

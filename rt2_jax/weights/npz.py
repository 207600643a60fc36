"""`.npz` files: what is in them, and one array at a time.

Opening reads names, shapes and types only. Nothing is ever unpickled: a pickle
can run any program.
"""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib

import numpy as np

from rt2_jax import storage
from rt2_jax.errors import UserError
from rt2_jax.weights.stored_arrays import (
  DTYPES,
  File,
  Shape,
  Stored,
  refuse_pickle,
)

_HEAD = 2**12  # bytes, more than an array's two headers have
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of a member's name and extra
_DAMAGE = (
  *(OSError, ValueError, LookupError, NotImplementedError, struct.error),
  *(zipfile.BadZipFile, zlib.error),
)


def open_npz(path: storage.Path) -> dict[str, Stored]:
  """Opens an `.npz` file; two bytes without a type are bfloat16.

  Raises:
    UserError: not a whole `.npz` file, or anything but floats in it.
  """
  refuse_pickle(path)
  try:
    source = File(path)
    members = _list_members(source)
    headers = {
      member.filename.removesuffix(".npy"): _read_header(source, member)
      for member in members
    }
  except UserError:
    raise
  except _DAMAGE as error:
    raise UserError(
      f"got {path}, which is not a whole .npz file ({error}); copy it again"
    ) from error
  objects = [name for name, (_, dtype) in headers.items() if dtype.hasobject]
  if objects:
    raise UserError(
      f"{path}: got arrays of Python objects ({', '.join(objects)}), which are "
      "pickled and could run any program, expected numbers"
    )
  return {
    name: Stored(
      shape, dtype, functools.partial(_read_member, source, member, dtype)
    )
    for member, (name, (shape, dtype)) in zip(
      members, headers.items(), strict=True
    )
  }


def _list_members(source: File) -> list[zipfile.ZipInfo]:
  """Reads an archive's directory, which stands at its end."""
  with source.path.open("rb") as file, zipfile.ZipFile(file) as archive:
    return archive.infolist()


def _read_header(
  source: File, member: zipfile.ZipInfo
) -> tuple[Shape, np.dtype]:
  """Reads an array's shape and type from the beginning of its member."""
  head, offset = _read_head(source, member)
  content = head[offset:]
  if member.compress_type != zipfile.ZIP_STORED:
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content)
  shape, _, dtype = _parse_header(io.BytesIO(content))
  return shape, dtype


def _read_member(
  source: File, member: zipfile.ZipInfo, dtype: np.dtype
) -> np.ndarray:
  """Reads an array, in one stretch of bytes."""
  _, offset = _read_head(source, member)
  start = member.header_offset + offset
  content = memoryview(source.read(start, member.compress_size))
  if member.compress_type != zipfile.ZIP_STORED:
    content = memoryview(zlib.decompress(content, -zlib.MAX_WBITS))
  if zlib.crc32(content) != member.CRC:
    raise UserError(
      f"got {source.path}, whose array {member.filename} has another checksum "
      "than its directory says; copy it again"
    )
  file = io.BytesIO(content[:_HEAD])
  shape, fortran, _ = _parse_header(file)
  array = np.frombuffer(content[file.tell() :], dtype)
  return array.reshape(shape, order="F" if fortran else "C")


def _read_head(source: File, member: zipfile.ZipInfo) -> tuple[bytes, int]:
  """Reads a member's first bytes, and where in them its content begins."""
  start = member.header_offset
  head = source.read(start, min(_HEAD, source.size - start)).tobytes()
  return head, _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack_from(head))


def _parse_header(file: io.BytesIO) -> tuple[Shape, bool, np.dtype]:
  """Reads shape, Fortran order and type of an `.npy` file."""
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
  else:
    shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
  return shape, fortran, DTYPES["BF16"] if dtype == "V2" else dtype

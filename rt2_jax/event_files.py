"""TensorBoard's event files, also in an object store, which appends nothing.

There a flush writes the whole object again. So that this stays cheap a file
that has grown large is left as it is, and the next part goes beside it:
TensorBoard reads the files of a folder in the order of their names.
"""

from __future__ import annotations

import logging

import tensorboardX
from tensorboardX import record_writer

from rt2_jax import storage
from rt2_jax.errors import UserError

_LOG = logging.getLogger(__name__)

_LARGEST = 4 * 2**20  # bytes that a flush may write again


def open_log(
  folder: storage.Path, start: int, write: bool
) -> tensorboardX.SummaryWriter:
  """Opens TensorBoard's writer; what was logged after `start` is void.

  The name of the file ends in the step, so that two runs within one second
  write two files.

  Args:
    folder: gets the file.
    start: steps done.
    write: False writes nothing.

  Raises:
    UserError: the folder cannot be written.
  """
  if isinstance(folder, storage.Url):
    scheme = str(folder).partition("://")[0]
    record_writer.register_writer_factory(scheme, _Factory())
  with storage.named_in_errors(folder):
    return tensorboardX.SummaryWriter(
      str(folder),
      purge_step=start + 1,
      filename_suffix=f".{start}",
      write_to_disk=write,
    )


class _Factory:
  """Opens event files for tensorboardX."""

  def open(self, path: str) -> _Object:
    return _Object(path)

  def directory_check(self, path: str):
    """Does nothing: an object store makes its folders with their objects."""


class _Object:
  """An event file as tensorboardX writes one."""

  def __init__(self, path: str):
    self._path = path
    self._parts = 0
    self._data = bytearray()
    self._written = 0  # bytes of the part

  def write(self, data: bytes):
    self._data += data

  def flush(self):
    """Writes the part; between two events, so that none is divided.

    What a store refuses is kept, and written at the next flush: tensorboardX
    flushes in a thread, which an error would end.
    """
    if len(self._data) == self._written:
      return
    name = f"{self._path}.{self._parts:03d}" if self._parts else self._path
    try:
      storage.Url(name).write_bytes(bytes(self._data))
    except UserError as error:
      _LOG.warning("TensorBoard's log waits: %s", error)
      return
    self._written = len(self._data)
    if self._written > _LARGEST:
      self._data.clear()
      self._written, self._parts = 0, self._parts + 1

  def close(self):
    self.flush()

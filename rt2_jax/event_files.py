"""TensorBoard's event files, also in an object store, which appends nothing.

There a flush writes the whole object again. So that this stays cheap a file
that has grown large is left as it is, and the next part goes beside it:
TensorBoard reads the files of a folder in the order of their names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
from tensorboardX import record_writer, summary

from rt2_jax import storage
from rt2_jax.errors import UserError

_LOG = logging.getLogger(__name__)

_LARGEST = 4 * 2**20  # bytes that a flush may write again


class EventFiles:
  """Writes a run's figures for TensorBoard."""

  def __init__(
    self,
    folder: storage.Path,
    start: int,
    fields: Mapping[str, Any],
    measures: Sequence[str],
  ):
    """Opens a file; what was logged after `start` is void.

    The name of the file ends in the step, so that two runs within one second
    write two files.

    Args:
      folder: gets the file.
      start: steps done.
      fields: of the run's config, for TensorBoard's tabs TEXT and HPARAMS.
      measures: names of scalars that the tab HPARAMS compares runs by.

    Raises:
      UserError: the folder cannot be written.
    """
    if isinstance(folder, storage.Url):
      scheme = str(folder).partition("://")[0]
      record_writer.register_writer_factory(scheme, _Factory())
    with storage.named_in_errors(folder):
      self._writer = tensorboardX.SummaryWriter(
        str(folder), purge_step=start + 1, filename_suffix=f".{start}"
      )
    text = json.dumps(fields, indent=2, sort_keys=True)
    self._writer.add_text("config", f"```json\n{text}\n```", start)
    # Not add_hparams, which makes a run of its own in a folder of its own.
    experiment, session, _ = summary.hparams(
      dict(_flat(fields)), dict.fromkeys(measures)
    )
    self._writer.file_writer.add_summary(experiment)
    self._writer.file_writer.add_summary(session)

  def scalars(self, step: int, values: Mapping[str, float]):
    """Writes numbers by their names, such as "train/loss"."""
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]):
    """Writes pictures uint8[H, W, 3] by their names."""
    for name, picture in pictures.items():
      self._writer.add_image(name, picture, step, dataformats="HWC")

  def flush(self):
    """Puts on disk what was written so far."""
    self._writer.flush()

  def close(self):
    self._writer.close()


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
  """Yields ("optimizer.learning_rate", 1e-3) and so on; lists as JSON."""
  for name, value in fields.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{name}.")
    elif isinstance(value, bool | int | float | str):
      yield prefix + name, value
    else:
      yield prefix + name, json.dumps(value)


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

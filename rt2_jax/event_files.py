"""TensorBoard's event files, also in an object store, which appends nothing.

There a flush writes the whole object again. So that this stays cheap a file
that has grown large is left as it is, and the next part goes beside it:
TensorBoard reads the files of a folder in the order of their names.

tensorboardX makes the events, and TensorBoard frames them. tensorboardX's own
writer is not used: it writes in a thread, so that a flush leaves out what was
just added, and a full disk ends the thread.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rt2_jax import storage
from rt2_jax.errors import UserError

_LOG = logging.getLogger(__name__)

_LARGEST = 4 * 2**20  # bytes that a flush may write again
_FLUSHED_S = 120.0  # between two flushes without a checkpoint


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
    folder = storage.output_folder(folder, "--workdir")
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
    kind = _Object if isinstance(folder, storage.Url) else _LocalFile
    self._file = kind(folder / f"{name}.{start}")
    self._records = RecordWriter(self._file)
    self._flushed = time.monotonic()
    void = SessionLog(status=SessionLog.START)
    self._write(Event(file_version="brain.Event:2"))
    self._write(Event(step=start + 1, session_log=void))
    text = json.dumps(fields, indent=2, sort_keys=True)
    self._add(start, summary.text("config", f"```json\n{text}\n```"))
    experiment, session, _ = summary.hparams(
      dict(_flat(fields)), dict.fromkeys(measures)
    )
    self._add(start, experiment)
    self._add(start, session)
    self._file.flush()

  def scalars(self, step: int, values: Mapping[str, float]):
    """Writes numbers by their names, such as "train/loss"."""
    for name, value in values.items():
      self._add(step, summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSHED_S:
      self.flush()

  def pictures(self, step: int, pictures: Mapping[str, np.ndarray]):
    """Writes pictures uint8[H, W, 3] by their names."""
    for name, picture in pictures.items():
      self._add(step, summary.image(name, picture, dataformats="HWC"))

  def flush(self):
    """Puts on disk what was written so far.

    What a disk or store refuses is kept, and written at the next flush: no
    figure is worth a run.
    """
    self._flushed = time.monotonic()
    try:
      self._file.flush()
    except UserError as error:
      _LOG.warning("TensorBoard's log waits: %s", error)

  def close(self):
    self.flush()

  def _add(self, step: int, found: Any):
    self._write(Event(step=step, summary=found))

  def _write(self, event: Event):
    event.wall_time = time.time()
    self._records.write(event.SerializeToString())


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple]:
  """Yields ("optimizer.learning_rate", 1e-3) and so on; lists as JSON."""
  for name, value in fields.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f"{prefix}{name}.")
    elif isinstance(value, bool | int | float | str):
      yield prefix + name, value
    else:
      yield prefix + name, json.dumps(value)


class _LocalFile:
  """An event file on this machine."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._data = bytearray()  # not on disk yet
    self._size = 0  # bytes on disk

  def write(self, data: bytes):
    self._data += data

  def flush(self):
    """Appends; in place of what a full disk took of an event."""
    mode = "r+b" if self._size else "wb"
    with storage.named_in_errors(self._path), self._path.open(mode) as file:
      file.seek(self._size)
      file.write(self._data)
      file.flush()
      os.fsync(file.fileno())
    self._size += len(self._data)
    self._data.clear()


class _Object:
  """An event file in an object store."""

  def __init__(self, path: storage.Url):
    self._path = path
    self._parts = 0
    self._data = bytearray()
    self._written = 0  # bytes of the part

  def write(self, data: bytes):
    self._data += data

  def flush(self):
    """Writes the part; between two events, so that none is divided."""
    if len(self._data) == self._written:
      return
    part = f".{self._parts:03d}" if self._parts else ""
    path = self._path.with_name(self._path.name + part)
    path.write_bytes(bytes(self._data))
    self._written = len(self._data)
    if self._written > _LARGEST:
      self._data.clear()
      self._written, self._parts = 0, self._parts + 1

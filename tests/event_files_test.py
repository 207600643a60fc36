"""TensorBoard's files in an object store, in parts."""

import logging
import uuid

from tensorboard.backend.event_processing import event_accumulator

from rt2_jax import event_files, local_copies, storage
from rt2_jax.errors import UserError


def steps(folder) -> list[int]:
  with local_copies.of(folder) as local:
    log = event_accumulator.EventAccumulator(str(local)).Reload()
    return [event.step for event in log.Scalars("x")]


def test_parts_are_read_in_their_order_and_later_runs_void_earlier(monkeypatch):
  monkeypatch.setattr(event_files, "_LARGEST", 200)
  folder = storage.locate(f"memory://{uuid.uuid4().hex}/log", "x")
  with event_files.open_log(folder, 0, True) as log:
    for step in range(1, 13):
      log.add_scalar("x", step, step)
      log.flush()
  assert steps(folder) == [*range(1, 13)]
  with event_files.open_log(folder, 8, True) as log:
    log.add_scalar("x", 9, 9)
  assert steps(folder) == [*range(1, 10)]
  before = set(folder.iterdir())
  event_files.open_log(folder, 9, False).close()
  assert set(folder.iterdir()) == before


def test_a_file_that_has_grown_large_is_left_as_it_is(monkeypatch):
  monkeypatch.setattr(event_files, "_LARGEST", 5)
  path = storage.locate(f"memory://{uuid.uuid4().hex}/log/events", "x")
  file = event_files._Object(str(path))
  for data in (b"one", b"two", b"three", b"four"):
    file.write(data)
    file.flush()
    file.flush()
  file.close()
  parts = sorted(path.parent.iterdir())
  assert [part.read_bytes() for part in parts] == [b"onetwo", b"threefour"]


def test_what_a_store_refuses_is_written_later(monkeypatch, caplog):
  path = storage.locate(f"memory://{uuid.uuid4().hex}/events", "x")
  file = event_files._Object(str(path))
  file.write(b"one")

  def refuse(*_):
    raise UserError("full")

  with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
    patch.setattr(storage.Url, "write_bytes", refuse)
    file.flush()
  assert "TensorBoard's log waits: full" in caplog.text
  file.write(b", two")
  file.close()
  assert path.read_bytes() == b"one, two"

"""TensorBoard's files; in an object store, in parts."""

import contextlib
import logging
import resource
import signal
import uuid

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from rt2_jax import event_files, local_copies, storage
from rt2_jax.errors import UserError
from rt2_jax.event_files import EventFiles


def steps(folder) -> list[int]:
  with local_copies.of(folder) as local:
    log = event_accumulator.EventAccumulator(str(local)).Reload()
    return [event.step for event in log.Scalars("x")]


def open_files(folder, start, fields=(), measures=()):
  return contextlib.closing(EventFiles(folder, start, dict(fields), measures))


def test_parts_are_read_in_their_order_and_later_runs_void_earlier(monkeypatch):
  monkeypatch.setattr(event_files, "_LARGEST", 200)
  folder = storage.locate(f"memory://{uuid.uuid4().hex}/log", "x")
  with open_files(folder, 0) as log:
    for step in range(1, 13):
      log.scalars(step, {"x": step})
      log.flush()
  assert steps(folder) == [*range(1, 13)]
  with open_files(folder, 8) as log:
    log.scalars(9, {"x": 9})
  assert steps(folder) == [*range(1, 10)]


def test_pictures_and_hyperparameters_are_read_back(tmp_path):
  fields = {"a": {"rate": 0.5, "axes": [1, 2]}, "name": "b", "on": True}
  with open_files(tmp_path, 3, fields, ["train/loss"]) as log:
    log.pictures(7, {"eval/x/0": np.zeros((4, 6, 3), np.uint8)})
  log = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  (picture,) = log.Images("eval/x/0")
  assert (picture.step, picture.height, picture.width) == (7, 4, 6)
  stored = log.PluginTagToContent("hparams")
  session, experiment = (
    plugin_data_pb2.HParamsPluginData.FromString(stored[f"_hparams_/{name}"])
    for name in ("session_start_info", "experiment")
  )
  found = session.session_start_info.hparams
  assert set(found) == {"a.rate", "a.axes", "name", "on"}
  assert found["a.rate"].number_value == 0.5
  assert found["a.axes"].string_value == "[1, 2]"
  (measure,) = experiment.experiment.metric_infos
  assert measure.name.tag == "train/loss"


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
  if request.param == "local":
    return tmp_path / "log"
  return storage.locate(f"memory://{uuid.uuid4().hex}/log", "x")


def test_a_flush_leaves_nothing_out(folder):
  """So that a run which is killed after a checkpoint has logged its step."""
  others = dict.fromkeys("abcdefghijklmno", 0.0)
  with open_files(folder, 0) as log:
    for step in range(1, 4):
      log.scalars(step, {**others, "x": step})
      log.flush()
      assert steps(folder) == [*range(1, step + 1)]


def test_figures_appear_without_a_checkpoint(folder, monkeypatch):
  with open_files(folder, 0) as log:
    log.scalars(1, {"x": 1})
    monkeypatch.setattr(event_files, "_FLUSHED_S", 0.0)
    log.scalars(2, {"x": 2})
    assert steps(folder) == [1, 2]


def test_a_full_disk_is_waited_for(tmp_path, caplog):
  """A limit of the system stands in for it; events are long and short."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  try:
    with open_files(tmp_path, 0) as log:
      size = next(tmp_path.iterdir()).stat().st_size
      resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
      for step in range(1, 40):
        log.scalars(step, {"x": step})
        log.flush()
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
      log.scalars(40, {"x": 40})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)
  assert "log waits" in caplog.text and "File too large" in caplog.text
  assert steps(tmp_path) == [*range(1, 41)]


def test_a_file_that_has_grown_large_is_left_as_it_is(monkeypatch):
  monkeypatch.setattr(event_files, "_LARGEST", 5)
  path = storage.locate(f"memory://{uuid.uuid4().hex}/log/events", "x")
  file = event_files._Object(path)
  for data in (b"one", b"two", b"three", b"four"):
    file.write(data)
    file.flush()
    file.flush()
  parts = sorted(path.parent.iterdir())
  assert [part.read_bytes() for part in parts] == [b"onetwo", b"threefour"]


def test_what_a_store_refuses_is_written_later(monkeypatch, caplog):
  folder = storage.locate(f"memory://{uuid.uuid4().hex}/log", "x")

  def refuse(*_):
    raise UserError("full")

  with open_files(folder, 0) as log, caplog.at_level(logging.WARNING):
    log.scalars(1, {"x": 1})
    with monkeypatch.context() as patch:
      patch.setattr(storage.Url, "write_bytes", refuse)
      log.flush()
    assert "TensorBoard's log waits: full" in caplog.text
    log.scalars(2, {"x": 2})
  assert steps(folder) == [1, 2]


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="got .*file/log.*cannot be written"):
    EventFiles(tmp_path / "file/log", 0, {}, [])

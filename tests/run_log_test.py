"""Where a run's figures and pictures go."""

import contextlib
import sys
import types

import numpy as np
import pytest

from rt2_jax import run_log
from rt2_jax.errors import UserError
from rt2_jax.run_log import RunLog
from rt2_jax.trackers import Tracker, TrackingConfig

PIXELS = np.full((4, 6, 3), 7, np.uint8)


class Run:
  """A tracker's run that keeps what it gets, and may fail."""

  url = "https://tracker/run"

  def __init__(self):
    self.got, self.finished, self.fails = [], False, False

  def log(self, values, step):
    if self.fails:
      raise ConnectionError("gone")
    self.got.append((step, values))

  def finish(self):
    self.finished = True


@pytest.fixture
def started(monkeypatch):
  """Stands in for both packages; lists the runs that were started."""
  runs = []

  def init(**arguments):
    runs.append((arguments, Run()))
    return runs[-1][1]

  for name in ("wandb", "trackio"):
    fake = types.SimpleNamespace(
      init=init, Image=lambda pixels: pixels.sum(), Settings=dict
    )
    monkeypatch.setitem(sys.modules, name, fake)
  return runs


def open_log(folder, first_start, tracking) -> RunLog:
  return run_log.open_log(
    folder, 3, first_start, {"seed": 1}, ["train/loss"], tracking
  )


def test_every_sink_gets_everything(started, tmp_path):
  tracking = TrackingConfig(wandb=True, trackio=True, project="arms")
  with contextlib.closing(open_log(tmp_path / "a:b", 0.0, tracking)) as log:
    log.scalars(4, {"train/loss": 0.5})
    log.pictures(5, {"eval/x/0": lambda: PIXELS})
  assert len(list((tmp_path / "a:b/tensorboard").iterdir())) == 1
  for arguments, run in started:
    assert arguments["project"] == "arms"
    assert arguments["config"] == {"seed": 1}
    assert arguments["name"].startswith("a_b-")
    assert run.got == [
      (4, {"train/loss": 0.5}),
      (5, {"eval/x/0": PIXELS.sum()}),
    ]
    assert run.finished
  (wandb, _), (trackio, _) = started
  assert wandb["id"] == wandb["name"] == trackio["name"]


def test_a_run_that_goes_on_keeps_its_name_and_a_new_one_gets_another(
  started, tmp_path
):
  for first_start in (1.0, 1.0, 2.0):
    open_log(tmp_path, first_start, TrackingConfig(trackio=True)).close()
  first, resumed, other = (arguments["name"] for arguments, _ in started)
  assert first == resumed != other


def test_without_sinks_nothing_is_drawn():
  RunLog([]).pictures(1, {"x": lambda: pytest.fail("drawn")})


def test_a_tracker_that_fails_is_left(started, caplog):
  tracker = Tracker("trackio", "rt2", "run", {})
  _, run = started[0]
  run.fails = True
  tracker.scalars(1, {"x": 1.0})
  run.fails = False
  tracker.scalars(2, {"x": 2.0})
  tracker.close()
  assert not run.got and not run.finished
  assert caplog.text.count("trackio fails") == 1
  assert "ConnectionError: gone" in caplog.text


def test_a_tracker_that_refuses_is_named(started, monkeypatch):
  def refuse(**_):
    raise ValueError("no key")

  monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
  with pytest.raises(UserError, match=r"tracking.wandb = True.*no key"):
    Tracker("wandb", "rt2", "run", {})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_real_trackers_take_a_run_that_goes_on(name, tmp_path, monkeypatch):
  """Offline; `make trackers` has both."""
  for variable in ("WANDB_DIR", "TRACKIO_DIR"):
    monkeypatch.setenv(variable, str(tmp_path))
  monkeypatch.setenv("WANDB_MODE", "offline")
  pytest.importorskip(name)
  for step in (1, 2):
    tracker = Tracker(name, "rt2", "run", {"seed": 1, "deep": {"a": None}})
    tracker.scalars(step, {"train/loss": 0.5 * step})
    tracker.pictures(step, {"eval/x/0": PIXELS})
    tracker.close()
    assert tracker._run is not None  # nothing failed
  files = [file for file in tmp_path.rglob("*") if file.is_file()]
  assert any(b"train/loss" in file.read_bytes() for file in files)
  assert sum(file.suffix == ".png" for file in files) == 2

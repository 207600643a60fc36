"""When a run saves: by steps, by time, its best, and after a full disk."""

import json
import types

import pytest

from rt2_jax import saving
from rt2_jax.checkpoint import CannotWriteError
from rt2_jax.errors import UserError
from rt2_jax.saving import Saver

CONFIG = {
  "log_every": 2,
  "checkpoint_every": 5,
  "checkpoint_minutes": 0.0,
  "num_steps": 12,
  "keep_best": "",
}


class Disk:
  """`Checkpoints` without files.

  It is full while `problem` is set; steps of `fail_late` fail after `save`.
  """

  def __init__(self):
    self.saved, self.problem, self.late, self.fail_late = [], "", "", ()
    self.best = None

  def save(self, step):
    self._raise(self.problem)
    self.saved.append(step)
    self.late = "quota" if step in self.fail_late else ""

  def check(self):
    late, self.late = self.late, ""
    self._raise(late)

  wait = check

  def give_up(self):
    self.given_up = True

  def _raise(self, problem):
    if problem:
      raise CannotWriteError(problem)


@pytest.fixture
def disk():
  return Disk()


def saver(disk, folder, start=0, best=(), **changed):
  config = types.SimpleNamespace(**CONFIG | changed)
  return Saver(config, disk, folder, start, dict(best))


def steps(saver, disk, start=0, each=lambda done: None):
  for done in range(start + 1, 13):
    each(done)
    if saver.due(done):
      saver.save(done, lambda done=done: disk.save(done), done == 12)
  return disk.saved


def test_by_steps(disk, tmp_path):
  assert steps(saver(disk, tmp_path), disk) == [5, 10, 12]


def test_by_the_clock_at_the_next_log(disk, tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])

  def each(done):
    now[0] += 25

  saved = saver(disk, tmp_path, checkpoint_minutes=1, checkpoint_every=100)
  assert steps(saved, disk, each=each) == [4, 8, 12]


def test_a_full_disk_is_tried_again(disk, tmp_path, caplog):
  def each(done):
    disk.problem = "no space" if done in (5, 6) else ""

  assert steps(saver(disk, tmp_path), disk, each=each) == [8, 10, 12]
  assert disk.given_up and caplog.text.count("no space") == 2


def test_a_write_that_fails_in_the_background_is_repeated(disk, tmp_path):
  disk.fail_late = (5,)
  assert steps(saver(disk, tmp_path), disk) == [5, 6, 10, 12]
  disk.saved.clear()  # noticed by the next save alone
  assert steps(saver(disk, tmp_path, log_every=11), disk) == [5, 10, 12]


def test_the_last_step_must_be_saved(disk, tmp_path):
  disk.fail_late = (12,)
  with pytest.raises(CannotWriteError, match="quota"):
    steps(saver(disk, tmp_path), disk)


def test_the_best_stays(disk, tmp_path):
  values = {3: 0.5, 6: 0.7, 9: 0.6}
  one = saver(disk, tmp_path, keep_best="kitchen/accuracy")

  def each(done):
    if done in values:
      one.measured(done, {"kitchen/accuracy": values[done]})

  assert steps(one, disk, each=each) == [3, 5, 6, 10, 12]
  assert disk.best == 6
  found = json.loads((tmp_path / "best.json").read_text())
  assert (found["step"], found["value"]) == (6, 0.7)
  assert found["metric"] == "kitchen/accuracy"
  again = saver(disk, tmp_path, 12, one.best, keep_best="kitchen/accuracy")
  again.measured(12, {"kitchen/accuracy": 0.69})
  assert again.best["step"] == 6
  smallest = saver(disk, tmp_path, keep_best="-loss")
  for step, loss in ((3, 2.0), (6, 1.0), (9, 3.0)):
    smallest.measured(step, {"loss": loss})
  assert smallest.best["step"] == 6
  with pytest.raises(UserError, match="did you mean 'loss'"):
    saver(disk, tmp_path, keep_best="los").measured(3, {"loss": 1.0})


@pytest.mark.parametrize("was", ["loss", "accuracy"])
def test_the_best_of_another_measure_is_not_compared(disk, tmp_path, was):
  """It is kept until the new measure has one."""
  one = saver(disk, tmp_path, keep_best=was)
  one.measured(3, {"loss": 0.5, "accuracy": 0.5})
  again = saver(disk, tmp_path, 5, one.best, keep_best="-loss")
  assert disk.best == 3
  again.measured(6, {"loss": 2.0})
  again.measured(9, {"loss": 3.0})
  assert (again.best["step"], again.best["value"]) == (6, 2.0)


def test_a_best_from_before_measures_had_a_side_is_compared(disk, tmp_path):
  kept = {"step": 3, "metric": "loss", "value": 1.0}
  again = saver(disk, tmp_path, 5, kept, keep_best="-loss")
  again.measured(6, {"loss": 2.0})
  assert again.best == kept

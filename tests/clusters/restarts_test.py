"""When a job is started again, on a cluster that plays its part."""

import dataclasses
import pathlib

import pytest

from rt2_jax.clusters import restarts
from rt2_jax.clusters.cluster import (
  Cluster,
  Ending,
  Job,
  Outcome,
  Unavailable,
  outcome_of,
)
from rt2_jax.clusters.code import Code
from rt2_jax.errors import UserError

LOST = Outcome(Ending.LOST, "gone")
PREEMPTED = Outcome(Ending.PREEMPTED, "told to leave")
DONE = Outcome(Ending.DONE)


@dataclasses.dataclass
class Scripted(Cluster):
  """Ends each start as told, (seconds, outcome or error)."""

  script: list
  now: float = 0.0

  def __post_init__(self):
    self.calls = []

  def start(self, job):
    self.calls.append("start")

  def wait(self):
    seconds, ending = self.script.pop(0)
    self.now += seconds
    if isinstance(ending, Exception):
      raise ending
    return ending

  def recover(self):
    self.calls.append("recover")

  def create(self): ...
  def status(self): ...
  def logs(self): ...
  def stop(self): ...
  def delete(self): ...


def run(cluster: Scripted, max_restarts: int) -> tuple[list[float], list[str]]:
  job = Job("x", Code(pathlib.Path(), "0"), "train.py", [], max_restarts)
  pauses, said = [], []
  restarts.run(
    cluster, job, said.append, pauses.append, clock=lambda: cluster.now
  )
  return pauses, said


def test_pauses_double_while_starts_are_short_and_have_a_limit():
  short, long = (30.0, LOST), (3600.0, PREEMPTED)
  scripted = Scripted([short] * 3 + [long] + [short] * 9 + [(1.0, DONE)])
  pauses, said = run(scripted, 13)
  assert pauses[:4] == [5, 10, 20, 0]
  assert pauses[4:] == [5, 10, 20, 40, 80, 160, 320, 600, 600]
  assert scripted.calls == ["start"] + ["recover", "start"] * 13
  assert said[-1] == "x: done after 13 restarts"


def test_machines_that_are_missing_are_waited_for_once_they_have_worked():
  away = (1.0, Unavailable("no capacity"))
  pauses, said = run(Scripted([(1.0, LOST), away, away, (1.0, DONE)]), 3)
  assert len(pauses) == 3 and "x: lost (no capacity)" in said
  with pytest.raises(Unavailable):  # nothing has worked yet
    run(Scripted([away]), 3)
  with pytest.raises(UserError, match=r"got lost \(no capacity\) after 1 rest"):
    run(Scripted([(1.0, LOST), away]), 1)


def test_an_error_of_the_training_ends_it():
  with pytest.raises(UserError, match="no such file"):
    run(Scripted([(1.0, LOST), (1.0, UserError("no such file"))]), 9)


@pytest.mark.parametrize(
  ("codes", "ending"),
  [
    ((0, 0), Ending.DONE),
    ((42, 42), Ending.PREEMPTED),
    ((0, 42), Ending.PREEMPTED),
    ((1, 137, 42), Ending.LOST),  # the others miss the killed one
    ((143, 0), Ending.LOST),
    ((42, 1), None),  # what the others miss is the one with an error
    ((2, 0), None),
  ],
)
def test_how_a_start_ended_follows_from_its_exit_codes(codes, ending):
  outcome = outcome_of(dict(enumerate(codes)))
  assert (outcome and outcome.ending) == ending

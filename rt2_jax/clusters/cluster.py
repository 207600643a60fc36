"""The interface of every kind of cluster, and its vocabulary.

A *job* is a training; a *start* of it runs on all processes at once. Each start
has an `Ending`; `restarts.run` starts the job again until one is DONE.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from rt2_jax.clusters.code import Code
from rt2_jax.errors import START_AGAIN, UserError

# A shell's exit code of a program that signal n killed is 128 + n.
FIRST_SIGNAL_CODE = 128


@dataclasses.dataclass(frozen=True)
class Job:
  """A training.

  Attributes:
    name: of the run, its folder and its machines.
    code: the commit that runs.
    program: e.g. "launch/train.py", a path in the commit.
    arguments: of the program, without those that tell its processes apart.
    max_restarts: how often it may be started again.
  """

  name: str
  code: Code
  program: str
  arguments: Sequence[str]
  max_restarts: int


class Ending(enum.Enum):
  """How a start ended, where it did not fail for good."""

  DONE = "done"  # the training is complete
  PREEMPTED = "preempted"  # by SIGTERM, state saved; or it misses a process
  LOST = "lost"  # a process or machine vanished
  STOPPED = "stopped"  # by `stop`


@dataclasses.dataclass(frozen=True)
class Outcome:
  """An ending and the reason for it, in words."""

  ending: Ending
  reason: str = ""


class Cluster(abc.ABC):
  """Machines of one kind; each backend is a file beside this one.

  Every method prints what it does, or in a dry run what it would do. All raise
  UserError with what to do where the cluster's own program refuses.
  """

  @abc.abstractmethod
  def create(self):
    """Gets the machines, and returns when all of them are ready."""

  @abc.abstractmethod
  def start(self, job: Job):
    """Ships the code and starts every process, or queues their start."""

  @abc.abstractmethod
  def wait(self) -> Outcome:
    """Prints the log of process 0 until the start has ended.

    Raises:
      UserError: the training ended with an error that another start would
        meet again.
    """

  @abc.abstractmethod
  def recover(self):
    """Replaces lost machines before another start."""

  @abc.abstractmethod
  def status(self) -> str:
    """Describes machines and processes as they are now."""

  @abc.abstractmethod
  def logs(self):
    """Prints the newest lines of every process."""

  @abc.abstractmethod
  def stop(self):
    """Ends the run: SIGTERM, so that it saves, then SIGKILL."""

  @abc.abstractmethod
  def delete(self):
    """Gives the machines back, and removes the shipped code."""


class Unavailable(UserError):
  """Machines that are not there now: another try may find them."""


def outcome_of(
  codes: Mapping[Any, int], noun: str = "process"
) -> Outcome | None:
  """Reads how a start ended from its processes' exit codes.

  A process that a signal killed outweighs all others: the rest of them end with
  errors only because it is missing. An error of a process outweighs
  `START_AGAIN`, with which the others end when they miss it.

  Args:
    codes: number or name of a process -> exit code as a shell gives it.
    noun: what the numbers or names count.

  Returns:
    None for an error that another start would meet again.
  """
  killed = [
    f"{noun} {n} by signal {code - FIRST_SIGNAL_CODE}"
    for n, code in codes.items()
    if code >= FIRST_SIGNAL_CODE
  ]
  if killed:
    return Outcome(Ending.LOST, f"killed: {', '.join(killed)}")
  if failed(codes):
    return None
  if START_AGAIN in codes.values():
    return Outcome(Ending.PREEMPTED, f"exit code {START_AGAIN}, see its log")
  return Outcome(Ending.DONE)


def failed(codes: Mapping[Any, int]) -> list:
  """Lists the processes that ended with an error of their own."""
  return [n for n, code in codes.items() if code not in (0, START_AGAIN)]

"""Starts a job again until it is done, with back-off and a limit."""

from __future__ import annotations

import time
from collections.abc import Callable

from rt2_jax.clusters.cluster import (
  Cluster,
  Ending,
  Job,
  Outcome,
  Unavailable,
)
from rt2_jax.clusters.commands import CommandError
from rt2_jax.errors import UserError

_FIRST_DELAY_S = 5.0
_LONGEST_DELAY_S = 600.0
# A start that lasted this long was no part of a series of failures.
_SETTLED_S = 600.0


def run(
  cluster: Cluster,
  job: Job,
  say: Callable[[str], None] = print,
  sleep: Callable[[float], None] = time.sleep,
  clock: Callable[[], float] = time.monotonic,
):
  """Starts a job on a cluster until it is done or was stopped.

  A start that was preempted or has lost a process is followed by another one.
  So is, after the first, one that the cluster's program refuses for now.
  The pause before it doubles from 5 s to 10 min while starts last less than 10
  min.

  Raises:
    UserError: the training's own error, or `job.max_restarts` is reached.
  """
  short_starts = 0
  for restarts in range(job.max_restarts + 1):
    began = clock()
    try:
      if restarts:
        cluster.recover()
      cluster.start(job)
      outcome = cluster.wait()
    except (CommandError, Unavailable) as error:
      if not restarts:  # nothing has worked yet
        raise
      outcome = Outcome(Ending.LOST, str(error))
    if outcome.ending is Ending.DONE:
      say(f"{job.name}: done" + f" after {restarts} restarts" * bool(restarts))
      return
    if outcome.ending is Ending.STOPPED:
      say(f"{job.name}: stopped")
      return
    say(f"{job.name}: {outcome.ending.value} ({outcome.reason})")
    if restarts == job.max_restarts:
      break
    short_starts = 0 if clock() - began > _SETTLED_S else short_starts + 1
    pause = delay(short_starts)
    say(
      f"{job.name}: restart {restarts + 1} of at most {job.max_restarts} in "
      f"{pause:g} s"
    )
    sleep(pause)
  raise UserError(
    f"got {outcome.ending.value} ({outcome.reason}) after {job.max_restarts} "
    "restarts, expected an end within them; look at the logs, then run again "
    "(it goes on from its newest checkpoint) or raise --max_restarts"
  )


def delay(short_starts: int) -> float:
  """Seconds to wait after so many short starts in a row; 0 after none."""
  if not short_starts:
    return 0.0
  return min(_FIRST_DELAY_S * 2 ** (short_starts - 1), _LONGEST_DELAY_S)

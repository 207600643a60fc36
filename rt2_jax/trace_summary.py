"""What a trace of training steps says: step time, input wait, idle time, ops.

A trace is the `*.xplane.pb` that `jax.profiler` writes: planes of one device or
host, with lines of events. Steps and waits are found by their names on the host
(`profiling.Profiler`, `speed.Clock`), operations on the first device. A CPU has
no plane of its own: its operations are those of XLA's threads.

Steps are dispatched ahead of the devices, so the time is that from the first
step's dispatch until the devices have finished the last one.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax

from rt2_jax import storage
from rt2_jax.errors import UserError

STEP, INPUT, LAST = "train", "input", "wait for the last step"
_CPU_THREADS = "tf_XLA"


class Event(NamedTuple):
  """A stretch of a line: its name, start and end in nanoseconds."""

  name: str
  start: float
  end: float


class Op(NamedTuple):
  """An operation, summed over the traced steps.

  Attributes:
    name: in the compiled program.
    seconds: of a step, without the operations inside it.
    count: calls in a step.
  """

  name: str
  seconds: float
  count: float


@dataclasses.dataclass(frozen=True)
class Summary:
  """Where the time of a step went.

  Attributes:
    steps: how many were traced whole.
    step_s: seconds of a step.
    input_s: of these, seconds in which the host waited for input.
    idle_s: of these, seconds in which the device did nothing.
    ops: all operations, the costliest first.
  """

  steps: int
  step_s: float
  input_s: float
  idle_s: float
  ops: tuple[Op, ...]

  def lines(self, most: int) -> list[str]:
    """Formats a table of the costliest operations; its rows sum to a step."""
    rest = sum(op.seconds for op in self.ops[most:])
    rows = [(op.name, op.seconds, f"{op.count:g}") for op in self.ops[:most]]
    rows.append((f"{max(len(self.ops) - most, 0)} others", rest, ""))
    rows.append(("idle", self.idle_s, ""))
    rows.append(("a step", self.step_s, ""))
    return [
      f"{self.steps} steps of {1e3 * self.step_s:.2f} ms; the host waited for "
      f"input {self.input_s / self.step_s:.1%} of the time, the device was "
      f"idle {self.idle_s / self.step_s:.1%}",
      f"{'ms':>10} {'%':>6} {'calls':>6}  operation",
      *(
        f"{1e3 * seconds:10.3f} {seconds / self.step_s:6.1%} {count:>6}  {name}"
        for name, seconds, count in rows
      ),
    ]


def newest_trace(folder: storage.Path) -> storage.Path:
  """Finds the newest trace of a run's workdir.

  Raises:
    UserError: there is none.
  """
  traces = folder / "tensorboard/plugins/profile"  # a folder each, by its time
  found = sorted(traces.glob("*/*.xplane.pb"), key=str)
  if not found:
    raise UserError(
      f"got {folder}, which holds no trace, expected the workdir of a run with "
      "--profile_steps; train with it, or pass that run's --workdir"
    )
  return found[-1]


def summarize(path: storage.Path) -> Summary:
  """Reads a trace.

  Raises:
    UserError: it holds fewer than two steps, or no operation.
  """
  trace = jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes())
  planes = list(trace.planes)
  host = [
    event
    for plane in planes
    if plane.name.startswith("/host:CPU")
    for line in plane.lines
    for event in _events(line.events)
    if event.name in (STEP, INPUT, LAST)
  ]
  starts = [event.start for event in host if event.name == STEP]
  ends = [event.end for event in host if event.name == LAST]
  ops = _device_events(planes)
  if not (starts and ends and ops):
    raise UserError(
      f"got trace {path} with {len(starts)} steps, {len(ends)} ends and "
      f"{len(ops)} operations, expected a whole trace of --profile_steps"
    )
  begin, end, steps = min(starts), max(ends), len(starts)
  inside = [cut for e in ops if (cut := _cut(e, begin, end))]
  waits = [cut for e in host if e.name == INPUT if (cut := _cut(e, begin, end))]
  seconds, counts = _self_times(inside)
  per_step = 1e-9 / steps
  table = [
    Op(name, ns * per_step, counts[name] / steps)
    for name, ns in seconds.most_common()
  ]
  whole = (end - begin) * per_step
  busy = sum(op.seconds for op in table)
  waited = sum(e.end - e.start for e in waits) * per_step
  return Summary(steps, whole, waited, max(whole - busy, 0.0), tuple(table))


def _events(events: Iterable) -> list[Event]:
  return [
    Event(e.name.partition(" = ")[0], e.start_ns, e.start_ns + e.duration_ns)
    for e in events
    if e.duration_ns > 0 and not e.name.startswith("end: ")
  ]


def _device_events(planes: Sequence) -> list[Event]:
  """Finds the operations of the first device, or of the CPU."""
  devices = sorted(
    (p for p in planes if p.name.startswith("/device:")), key=lambda p: p.name
  )
  for plane in devices:
    lines = {line.name: line for line in plane.lines}
    names = [n for n in lines if n == "XLA Ops" or n.startswith("Stream #")]
    found = [e for name in names for e in _events(lines[name].events)]
    if found:
      return found
  return [
    event
    for plane in planes
    if plane.name.startswith("/host:CPU")
    for line in plane.lines
    if line.name.startswith(_CPU_THREADS)
    for event in _events(line.events)
    if "::" not in event.name
  ]


def _cut(event: Event, begin: float, end: float) -> Event | None:
  """Cuts an event to a stretch of time; None if it lies outside."""
  start, stop = max(event.start, begin), min(event.end, end)
  return Event(event.name, start, stop) if start < stop else None


def _self_times(
  events: Iterable[Event],
) -> tuple[collections.Counter, collections.Counter]:
  """Sums time by name, without that of the events inside; and counts them.

  Of events that overlap without one holding the other, the first one keeps
  their common time, so that the sum is the time in which anything ran.
  """
  seconds, counts = collections.Counter(), collections.Counter()
  running: list[Event] = []
  now = 0.0
  for event in sorted(events, key=lambda e: (e.start, -e.end)):
    now = _advance(seconds, running, now, event.start)
    running.append(event)
    counts[event.name] += 1
  _advance(seconds, running, now, float("inf"))
  return seconds, counts


def _advance(
  seconds: collections.Counter, running: list[Event], now: float, to: float
) -> float:
  """Gives the time up to `to` to the innermost event that runs."""
  while running and running[-1].end <= to:
    event = running.pop()
    if event.end > now:
      seconds[event.name] += event.end - max(now, event.start)
      now = event.end
  if running:
    seconds[running[-1].name] += max(to - max(now, running[-1].start), 0.0)
  return max(now, to) if running else now

"""Predicts the time of a compiled TPU program from its schedule.

The TPU compiler runs on any machine, and what it returns holds the real
layouts, fusions, collectives and their order. This walks that order with a
clock:

* A computation takes `estimated_cycles` / clock where the compiler gives an
  estimate, which it does while generating code (full mode). Otherwise (fast
  mode) it takes the longest of FLOP / (87% of peak), HBM bytes / (80% of
  bandwidth), and 4 bytes / (80% of bandwidth) for each number that passes the
  vector unit, whatever its type and wherever it lies: see
  `hlo_counts.vector_elements`. The parts were calibrated against the estimates
  for training steps of a 3B model on v5e.
* A collective over a ring of n chips takes V / bandwidth + 1 us per hop, with
  the bandwidth of `chips.Torus.ring` and V bytes per chip:
    all-gather        output * (n - 1) / n
    reduce-scatter    input * (n - 1) / n
    all-reduce        2 * input * (n - 1) / n
    all-to-all        input * (n - 1) / n / 4 (2 for a pair)
    permute           output, over one direction of one axis
  An all-reduce whose result is sliced at once is a reduce-scatter.
* A collective between S slices runs on the hosts, over the data centre's
  network (DCN). Each chip sends 2 * input * (S - 1) / S bytes of an all-reduce,
  as in a ring, at its share of the host's network cards (`chips.Chip`), plus
  100 us. It starts with the chip's `send`, and what waits for its `recv-done`
  waits for all of it. Both numbers are assumptions: nobody has measured them
  for this program.
* A synchronous collective moves the clock. An asynchronous one takes its link,
  and moves the clock only where its end is waited for: what it stalls is the
  exposed communication.
* The body of a loop is walked once and counted as often as it runs.
* A Pallas kernel carries no estimate: 50% of peak at the FLOP that it declares.

Not modelled: the host, input, contention on links and in the network,
stragglers, prefetches from HBM into VMEM, collectives on SparseCores (which
cost nothing here: such figures are lower bounds). Call what comes out
"compiler-predicted".
"""

from __future__ import annotations

import collections
import dataclasses
import re

from rt2_jax.tpu import hlo_collectives, hlo_counts
from rt2_jax.tpu.chips import Torus
from rt2_jax.tpu.hlo_collectives import Collective, Transfer
from rt2_jax.tpu.hlo_text import Instruction, Module, parse

_MXU_EFFICIENCY, _HBM_EFFICIENCY, _PALLAS_EFFICIENCY = 0.87, 0.80, 0.50

_DCN = "DCN"
_FREE = (
  "after-all",
  "async-update",
  "bitcast",
  "constant",
  "get-tuple-element",
  "opt-barrier",
  "parameter",
  "partition-id",
  "tuple",
)


@dataclasses.dataclass
class Cost:
  """What a program's step takes on each chip, predicted.

  Attributes:
    step_s: from the first instruction to the last.
    exposed_comm_s: part of it in which only communication runs.
    comm_s: all communication, hidden or not.
    exposed_dcn_s: the part of `exposed_comm_s` that waits for other slices.
    by_source: seconds of computation by (kind, instruction, place in the
      program).
    exposed_by_source: seconds of exposed communication, likewise.
    collectives: by kind, with "async" where it may overlap and "DCN" between
      slices: how many, bytes per chip, seconds.
    kept_bytes: what the loops of the forward pass write, one slice per turn,
      for the backward pass.
    unknown_trip_counts: loops of which nothing tells how often they run.
  """

  step_s: float = 0.0
  exposed_comm_s: float = 0.0
  comm_s: float = 0.0
  exposed_dcn_s: float = 0.0
  by_source: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  exposed_by_source: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  collectives: dict[str, list[float]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(lambda: [0, 0.0, 0.0])
  )
  kept_bytes: float = 0.0
  unknown_trip_counts: int = 0

  @property
  def compute_s(self) -> float:
    return self.step_s - self.exposed_comm_s

  @property
  def dcn_bytes(self) -> float:
    """Bytes that each chip sends to other slices."""
    between = (e for kind, e in self.collectives.items() if _DCN in kind)
    return sum(volume for _, volume, _ in between)

  def by_kind(self) -> dict[str, float]:
    """Seconds of each kind of computation, the largest first."""
    kinds = collections.Counter()
    for (kind, _, _), seconds in self.by_source.items():
      kinds[kind] += seconds
    return dict(kinds.most_common())


def predict(
  text: str, torus: Torus, estimates: bool, turns: float = 1.0
) -> Cost:
  """Walks a module.

  Args:
    text: compiled and scheduled HLO.
    torus: the chips it runs on, by partition id.
    estimates: whether to use the compiler's own estimates, which only a
      finished compilation holds.
    turns: how often loops run on average of which the program does not tell.

  Raises:
    UserError: the text is no HLO module.
  """
  program = _Program(parse(text), torus, estimates, turns, Cost())
  program.cost.step_s = _Walk(program, 1).run(program.module.entry)
  program.cost.kept_bytes = hlo_counts.kept_bytes(program.module)
  return program.cost


@dataclasses.dataclass
class _Program:
  """What all walks of one module share."""

  module: Module
  torus: Torus
  estimates: bool
  turns: float
  cost: Cost

  def seconds(self, computation: str, i: Instruction) -> float:
    """Predicts the time of an instruction that computes."""
    chip = self.torus.chip
    kind = self.kind(i)
    declared = float(i.find(r'"flops":"?(\d+)') or 0)
    if kind == "pallas" and declared:
      return declared / (chip.peak_flops * _PALLAS_EFFICIENCY)
    if kind != "pallas" and (self.estimates or i.opcode == "custom-call"):
      return i.estimated_cycles / chip.clock_hz
    moved = hlo_counts.hbm_bytes(self.module, computation, i)
    passed = hlo_counts.vector_elements(self.module, computation, i)
    flops = hlo_counts.flops(self.module, i.called) if kind == "matmul" else 0.0
    bandwidth = chip.hbm_bytes_per_s * _HBM_EFFICIENCY
    return max(
      flops / (chip.peak_flops * _MXU_EFFICIENCY),
      moved / bandwidth,
      4 * passed / bandwidth,
    )

  def kind(self, i: Instruction) -> str:
    """Tells matrix products from all else."""
    if "tpu_custom_call" in i.text:
      return "pallas"
    is_product = hlo_counts.matrix_product(self.module, i)
    return "matmul" if is_product else i.opcode

  def transfer(self, collective: Collective) -> tuple[float, float, str]:
    """Bytes per chip, seconds and the link of a collective."""
    if collective.kind == "collective-permute":
      size, link = collective.volume(2), collective.direction
      bandwidth, latency = self.torus.hop()
    else:
      group = collective.group(len(self.torus.coords))
      if len(group) < 2:
        return 0.0, 0.0, "ring"
      size, link = collective.volume(len(group)), "ring"
      bandwidth, latency = self.torus.ring(group)
    return size, size / bandwidth + latency, link


class _Walk:
  """One computation in the order of its schedule; times in seconds."""

  def __init__(self, program: _Program, repeats: float):
    self.program = program
    self.repeats = repeats  # how often the computation runs in a step
    self.now = 0.0
    self.link_free = collections.defaultdict(float)
    # Until when.
    self.flying: dict[str, tuple[float, Collective | Transfer]] = {}
    self.results: dict[str, str] = {}  # recv -> rendezvous
    self.carried: set[str] = set()  # keys of collectives met in the middle

  def run(self, computation: str) -> float:
    instructions = self.program.module.computations[computation].values()
    for i in instructions:
      if i.opcode == "while":
        self._loop(i)
      elif i.opcode == "conditional":
        self._branch(i)
      elif i.opcode == "call":
        self.now += _Walk(self.program, self.repeats).run(i.called)
      elif i.opcode == "async-update" and i.operands[0] in self.flying:
        self.flying[i.name] = self.flying.pop(i.operands[0])
      elif i.opcode.endswith("-done"):
        self._wait(i.operands[0])
      elif transfer := hlo_collectives.transfer(i):
        self._exchange(transfer)
      elif collective := hlo_collectives.find(self.program.module, i):
        self._communicate(computation, i, collective)
      elif i.opcode not in _FREE and not i.opcode.endswith("-start"):
        self._compute(computation, i)
    for key in list(self.flying):
      self._wait(key)
    return self.now

  def _loop(self, i: Instruction):
    count = hlo_counts.trip_count(self.program.module, i)
    if count is None:
      self.program.cost.unknown_trip_counts += 1
      count = self.program.turns
    body = i.find(r"body=%?([\w.\-]+)")
    walk = _Walk(self.program, self.repeats * count)
    self.now += count * walk.run(body)

  def _branch(self, i: Instruction):
    """Chooses the longest branch."""
    names = i.find(r"branch_computations=\{([^}]*)\}")
    if names is None:
      names = ",".join(
        re.findall(r"(?:true|false)_computation=([^,]+)", i.text)
      )
    self.now += max(
      _Walk(self.program, self.repeats).run(name.strip().lstrip("%"))
      for name in names.split(",")
    )

  def _compute(self, computation: str, i: Instruction):
    seconds = self.program.seconds(computation, i)
    self.now += seconds
    key = (self.program.kind(i), i.name, i.source)
    self.program.cost.by_source[key] += seconds * self.repeats

  def _communicate(self, computation: str, i: Instruction, c: Collective):
    started = c.key in self.flying
    if c.phase == "whole":
      self._start(c.key, c)
      self._wait(c.key)
    elif c.phase == "start":
      # An async pair is tied by its name, a chain of fusions by its channel.
      self._start(i.name if i.opcode != "fusion" else c.key, c)
    elif c.phase == "middle":
      if not started:  # before this computation began
        self._start(c.key, c)
      self.carried.add(c.key)
      self._compute(computation, i)
    else:
      if not started and c.key not in self.carried:
        self._start(c.key, c)
      self._wait(c.key)

  def _start(self, key: str, c: Collective):
    volume, seconds, link = self.program.transfer(c)
    self.link_free[link] = max(self.now, self.link_free[link]) + seconds
    self.flying[key] = self.link_free[link], c
    overlap = "" if c.phase == "whole" else " async"
    entry = self.program.cost.collectives[c.kind + overlap]
    for k, value in enumerate((1, volume, seconds)):
      entry[k] += value * self.repeats
    self.program.cost.comm_s += seconds * self.repeats

  def _exchange(self, t: Transfer):
    """Between slices: the data leave with `send`; `recv` names the result."""
    if t.instruction.opcode == "recv":
      self.results[t.instruction.name] = t.rendezvous
      return
    torus, cost = self.program.torus, self.program.cost
    volume = t.volume(torus.slices)
    bandwidth, latency = torus.network()
    link_free = max(self.now, self.link_free[_DCN]) + volume / bandwidth
    self.link_free[_DCN] = link_free
    self.flying[t.rendezvous] = link_free + latency, t
    seconds = volume / bandwidth + latency
    entry = cost.collectives[f"{t.kind} {_DCN}"]
    for k, value in enumerate((1, volume, seconds)):
      entry[k] += value * self.repeats
    cost.comm_s += seconds * self.repeats

  def _wait(self, key: str):
    key = self.results.get(key, key)
    if key not in self.flying:  # a copy or slice that is not modelled
      return
    end, c = self.flying.pop(key)
    stall = max(0.0, end - self.now)
    between = isinstance(c, Transfer)
    kind = f"{c.kind} {_DCN}" if between else c.kind
    source = (kind, c.instruction.name, c.instruction.source)
    self.program.cost.exposed_by_source[source] += stall * self.repeats
    self.program.cost.exposed_comm_s += stall * self.repeats
    if between:
      self.program.cost.exposed_dcn_s += stall * self.repeats
    self.now += stall

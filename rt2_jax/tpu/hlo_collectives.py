"""Finds collectives in compiled HLO: kind, replica group, bytes.

A collective may stand alone, come as a `-start` and a `-done`, or hide in a
fusion: an all-reduce whose result is sliced at once (a reduce-scatter), or, on
v5e, a chain of fusions that starts, carries on and ends an all-gather between
matrix products.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import numpy as np

from rt2_jax.tpu.hlo_text import (
  COLLECTIVES,
  Array,
  Instruction,
  Module,
  numbers,
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective, or a phase of one.

  Attributes:
    kind: of `hlo_text.COLLECTIVES`, or "all-reduce-scatter".
    instruction: its own; the inner one of a fusion.
    phase: "start" and "done" of an asynchronous one; "middle", a computation
      that carries it on; "whole", a synchronous one.
  """

  kind: str
  instruction: Instruction
  phase: str

  @property
  def key(self) -> str:
    """The same for all phases in a chain of fusions."""
    channel = self.instruction.find(r"channel_id=(\d+)")
    return f"channel {channel}" if channel else self.instruction.name

  def group(self, num_devices: int) -> list[int]:
    """Partition ids of one of the groups that take part."""
    return replica_group(self.instruction.text, num_devices)

  def volume(self, n: int) -> float:
    """Bytes that each of n chips moves, see `hlo_cost`."""
    size = sum(array.bytes for array in _results(self.instruction))
    part = (n - 1) / n
    return {
      "all-gather": size * part,
      "reduce-scatter": size * (n - 1),
      "all-reduce-scatter": size * part,
      "all-reduce": 2 * size * part,
      "all-to-all": size * part / (4 if n > 2 else 2),
    }.get(self.kind, size)

  @property
  def direction(self) -> str:
    """Which way a permutation sends."""
    pairs = self.instruction.find(r"source_target_pairs=\{(.*?\})\}") or "0,0"
    # The first pair may be the one that wraps around.
    source, target = numbers(pairs.split("},{")[-1])
    return "forward" if target > source else "backward"


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A host transfer that is one chip's side of a collective between slices.

  The compiler writes a `send` of the chip's data to the host, which runs the
  collective over the data centre's network, and a `recv` of the result.

  Attributes:
    kind: e.g. "all-reduce".
    rendezvous: name that `send` and `recv` share.
    instruction: the `send` or `recv`.
  """

  kind: str
  rendezvous: str
  instruction: Instruction

  def volume(self, slices: int) -> float:
    """Bytes that a chip sends to others, in a ring of the slices."""
    size = self.instruction.arrays[0].bytes
    part = size * (slices - 1) / slices
    whole = {"all-reduce": 2 * part, "all-gather": size * (slices - 1)}
    return whole.get(self.kind, part)


def transfer(i: Instruction) -> Transfer | None:
  """Finds what an instruction does between slices, if anything."""
  if i.opcode not in ("send", "recv"):
    return None
  kind = i.find(r'_xla_megascale_transfer_type="(\w+)"')
  rendezvous = i.find(r'_xla_host_transfer_rendezvous="([^"]+)"')
  if kind is None or rendezvous is None:
    return None
  return Transfer(kind.lower().replace("_", "-"), rendezvous, i)


def find(module: Module, i: Instruction) -> Collective | None:
  """Finds the collective that an instruction is or holds."""
  kind = i.opcode.removesuffix("-start")
  if kind in COLLECTIVES:
    phase = "start" if i.opcode.endswith("-start") else "whole"
    return Collective(kind, i, phase)
  found = _inside(module, i)
  if found is None:
    return None
  calls = [x for x in module.inside(i).values() if x.opcode == "custom-call"]
  marks = " ".join(x.text for x in calls)
  if i.opcode == "async-start" or "AsyncCollectiveStart" in marks:
    phase = "start"
  elif "AsyncCollectiveDone" in marks:
    phase = "done"
  elif "async_collective_fusion_config" in found[1].text:
    phase = "middle"
  else:
    phase = "whole"
  return Collective(*found, phase)


def _inside(module: Module, i: Instruction) -> tuple[str, Instruction] | None:
  if i.opcode not in ("fusion", "call", "custom-call", "async-start"):
    return None
  inner = module.inside(i)
  for x in inner.values():
    kind = x.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
      scattered = kind == "all-reduce" and _sliced(inner, x.name)
      return ("all-reduce-scatter" if scattered else kind), x
    if found := _inside(module, x):
      return found
  return None


def _sliced(inner: dict[str, Instruction], name: str) -> bool:
  """Tells whether a chip keeps only its own part of a result."""
  same = ("bitcast", "copy", "get-tuple-element", "reshape")
  users = [x for x in inner.values() if name in x.operands[:1]]
  return any(
    x.opcode == "dynamic-slice" or (x.opcode in same and _sliced(inner, x.name))
    for x in users
  )


def _results(i: Instruction) -> tuple[Array, ...]:
  """Returns a collective's output, without what a start carries beside it."""
  if not i.opcode.endswith("-start") or i.opcode == "all-reduce-start":
    return i.arrays
  data = [array for array in i.arrays if array.dims]
  return tuple(data[len(data) // 2 :])


def replica_group(text: str, num_devices: int) -> list[int]:
  """Parses the partition ids of one of a collective's groups.

  Args:
    text: of the instruction. Groups are written as lists
      `{{0,1},{2,3}}`, as an iota `[2,4]<=[4,2]T(1,0)`, or as axes of a mesh
      `mesh['a'=2,'b'=4] {'b'}`, where `'b':(2)2` is a part of an axis.
    num_devices: all of the program's.
  """
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
    return numbers(match.group(1))
  if match := re.search(
    r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\])(T\([\d,]+\))?", text
  ):
    shape, iota, transpose = match.groups()
    return _iota(iota, transpose).reshape(numbers(shape))[0].tolist()
  if match := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))?\s*\{([^}]*)\}",
    text,
  ):
    return _mesh_group(*match.groups())
  return list(range(num_devices))


def _iota(sizes: str, transpose: str | None) -> np.ndarray:
  dims = numbers(sizes)
  ids = np.arange(math.prod(dims)).reshape(dims)
  return ids.transpose(numbers(transpose)) if transpose else ids


def _mesh_group(mesh: str, device_ids: str | None, axes: str) -> list[int]:
  sizes = {a: int(n) for a, n in re.findall(r"'([\w.]+)'=(\d+)", mesh)}
  ids = np.arange(math.prod(sizes.values()))
  if device_ids and (iota := re.search(r"<=(\[[\d,]+\])(T\(.*)?", device_ids)):
    ids = _iota(*iota.groups()).reshape(-1)
  elif device_ids:
    ids = np.array(numbers(device_ids))
  ids = ids.reshape(tuple(sizes.values()))
  # Each axis as (before, chosen, after): the group runs over the chosen parts.
  shape, index = [], []
  chosen = collections.defaultdict(list)
  for axis, before, size in re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", axes):
    chosen[axis].append((int(before or 1), int(size or sizes[axis])))
  for axis, size in sizes.items():
    left = 1
    for before, part in sorted(chosen[axis]):
      shape += [before // left, part]
      index += [0, slice(None)]
      left = before * part
    shape.append(size // left)
    index.append(0)
  return ids.reshape(shape)[tuple(index)].reshape(-1).tolist()

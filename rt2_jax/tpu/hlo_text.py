"""Parses the text of a compiled, scheduled XLA module.

What the TPU compiler prints after optimisation: one computation per block, its
instructions in the order in which they will run. Only what a cost model needs
is read: shapes with their layout, operands and called computations.

Newer compilers write an element of a tuple as `%x#0` where it is used; older
ones spell out `%y = f32[8]{0} get-tuple-element(%x), index=0`. Both are read as
the second, so that an operand is what it reads and never a whole tuple.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

from rt2_jax.errors import UserError

_BYTES = {
  **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1.0),
  **dict.fromkeys(("s4", "u4"), 0.5),
  **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2.0),
  **dict.fromkeys(("f32", "s32", "u32"), 4.0),
  **dict.fromkeys(("f64", "s64", "u64"), 8.0),
}
_ARRAY = re.compile(
  r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\](?:\{([^}]*)\})?"
)
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERAND = re.compile(r"%([\w.\-]+(?:#(?:\d+|\{[\d,]+\}))*)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's output.

  Attributes:
    dtype: as XLA writes it, e.g. "bf16".
    dims: its logical shape.
    layout: order of dimensions, tiles and memory space, e.g.
      "1,0:T(8,128)(2,1)S(1)".
  """

  dtype: str
  dims: tuple[int, ...]
  layout: str = ""

  @property
  def in_hbm(self) -> bool:
    """False in VMEM, `S(1)`, other on-chip memories and the host's, `S(5)`."""
    return "S(" not in self.layout

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Bytes of the elements, without the padding of tiles."""
    return self.size * _BYTES[self.dtype]

  @property
  def padded_bytes(self) -> float:
    """Bytes that it takes in memory: its tile pads the minor dimensions."""
    order, _, tiles = self.layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", tiles)
    if not order or not tile:
      return self.bytes
    dims = [self.dims[int(i)] for i in order.split(",")]
    for i, size in enumerate(reversed(numbers(tile.group(1)))):
      if i < len(dims):
        dims[i] = -(-dims[i] // size) * size
    return math.prod(dims) * _BYTES[self.dtype]


@dataclasses.dataclass
class Instruction:
  """One line.

  Attributes:
    name: unique in its computation.
    opcode: e.g. "fusion".
    output: the type, e.g. "(bf16[8]{0}, u32[])".
    operands: names, in order.
    text: all that follows the opcode.
    is_root: whether its output is the computation's.
  """

  name: str
  opcode: str
  output: str
  operands: tuple[str, ...]
  text: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The output's arrays, in order; a tuple has several."""
    return tuple(
      Array(dtype, tuple(numbers(dims)), layout)
      for dtype, dims, layout in _ARRAY.findall(self.output)
    )

  def find(self, pattern: str) -> str | None:
    """Finds the first group of a pattern in the text."""
    match = re.search(pattern, self.text)
    return match.group(1) if match else None

  @property
  def constant(self) -> int | None:
    """The value of an integer constant."""
    value = self.find(r"^constant\((-?\d+)\)")
    return int(value) if self.opcode == "constant" and value else None

  @property
  def called(self) -> str | None:
    """Finds the computation of a fusion, call or asynchronous start."""
    return self.find(r"(?:calls|to_apply)=%?([\w.\-]+)")

  @property
  def estimated_cycles(self) -> int:
    """The compiler's own estimate; 0 where it gives none."""
    return int(self.find(r'"estimated_cycles":"(\d+)"') or 0)

  @property
  def source(self) -> str:
    """Where in the program it is from."""
    return self.find(r'op_name="([^"]*)"') or ""


@dataclasses.dataclass
class Module:
  """Computations by name, each its instructions by name, as scheduled."""

  computations: dict[str, dict[str, Instruction]]
  entry: str

  def root(self, computation: str) -> Instruction:
    instructions = list(self.computations[computation].values())
    roots = [i for i in instructions if i.is_root]
    return roots[0] if roots else instructions[-1]

  def inside(self, instruction: Instruction) -> dict[str, Instruction]:
    """Lists the instructions that a fusion runs; none for others."""
    return self.computations.get(instruction.called or "", {})


def parse(text: str) -> Module:
  """Reads a module.

  Raises:
    UserError: no entry computation.
  """
  # A Pallas call prints over several lines.
  text = re.sub(
    r"kernel_metadata=\{\n(.*?)\n\}", r"kernel_metadata={\1}", text, flags=re.S
  )
  computations: dict[str, dict[str, Instruction]] = {}
  current, entry = None, None
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header and not line.startswith("HloModule"):
      current = computations.setdefault(header.group(2), {})
      entry = header.group(2) if header.group(1) else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (match := _INSTRUCTION.match(line)):
      instruction = _instruction(*match.groups())
      for operand in instruction.operands:
        current |= _elements(operand, current)
      current[instruction.name] = instruction
  if entry is None:
    raise UserError(
      f"got a text of {len(text)} characters without an ENTRY computation, "
      "expected a compiled HLO module; pass what `Compiled.as_text` returns"
    )
  return Module(computations, entry)


def _instruction(root: str | None, name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.find(" ")
  output, text = rest[:end], rest[end:].lstrip()
  opcode, _, _ = text.partition("(")
  arguments = text[: _closing(text, len(opcode)) + 1]
  operands = tuple(_OPERAND.findall(arguments))
  return Instruction(name, opcode, output, operands, text, bool(root))


def _elements(
  operand: str, known: Mapping[str, Instruction]
) -> dict[str, Instruction]:
  """Spells out the element that an operand `x#1` names.

  An element of an element is `x#1#0` or `x#{1,0}`.
  """
  name, *path = re.split(r"[#,{}]+", operand.rstrip("}"))
  found = {}
  tuple_type = known[name].output if path else ""
  for i, index in enumerate(path, 1):
    output = _tuple_types(tuple_type)[int(index)]
    element = operand if i == len(path) else f"{name}#{index}"
    text = f"get-tuple-element(%{name}), index={index}"
    found[element] = Instruction(
      element, "get-tuple-element", output, (name,), text, False
    )
    name, tuple_type = element, output
  return found


def _tuple_types(output: str) -> list[str]:
  """Splits "(f32[8,2]{1,0}, (u32[], s32[]))"; nested types stay whole."""
  depth, types = 0, [""]
  for character in output[1:-1]:
    depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(
      character, 0
    )
    if character == "," and not depth:
      types.append("")
    else:
      types[-1] += character
  return [kind.strip() for kind in types]


def _closing(text: str, opening: int) -> int:
  """Finds where the bracket at `opening` closes."""
  depth = 0
  for match in re.compile(r"[()]").finditer(text, opening):
    depth += 1 if match.group() == "(" else -1
    if not depth:
      return match.start()
  return len(text) - 1


def numbers(text: str) -> list[int]:
  """Parses integers that commas, or x between sizes, separate."""
  return [int(n) for n in re.findall(r"-?\d+", text)]

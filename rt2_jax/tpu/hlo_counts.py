"""Counts turns of loops and FLOP of matrix products in compiled HLO.

`Compiled.cost_analysis` is no substitute: it counts the body of a loop once.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

import numpy as np

from rt2_jax.tpu.hlo_text import (
  COLLECTIVES,
  Array,
  Instruction,
  Module,
  numbers,
)

# What passes a value on unchanged.
_SAME = ("bitcast", "copy", "convert", "reshape", "copy-done", "copy-start")


def trip_count(module: Module, loop: Instruction) -> int | None:
  """Counts a while loop's turns, from 0 up to its condition's constant.

  The TPU compiler does not write it down, and a loop that overlaps two
  collectives counts by 2: the bound is the constant that the condition
  compares with, the step what the body adds to the same element.

  Returns:
    None where the loop is not of this kind.
  """
  known = loop.find(r'known_trip_count":\{"n":"(\d+)"')
  if known:
    return int(known)
  found = _bound(module, loop.find(r"condition=%?([\w.\-]+)"))
  if found is None:
    return None
  index, bound = found
  body = loop.find(r"body=%?([\w.\-]+)")
  carried = module.root(body).operands
  step = 1
  if index is not None and index < len(carried):
    step = _step(module, body, carried[index])
  return max(1, math.ceil(bound / step))


def _bound(module: Module, condition: str) -> tuple[int | None, int] | None:
  """Parses (element of the loop's state, its bound)."""
  outer = module.computations[condition]
  root = module.root(condition)
  inner = module.inside(root) or outer
  compare = next((i for i in inner.values() if i.opcode == "compare"), None)
  if compare is None:
    return None
  index = bound = None
  for name in compare.operands:
    operand = inner[name]
    if inner is not outer and operand.opcode == "parameter":
      number = int(operand.find(r"parameter\((\d+)\)"))
      operand = outer[root.operands[number]]
    if operand.constant is not None:
      bound = operand.constant
    elif operand.opcode == "get-tuple-element":
      index = int(operand.find(r"index=(\d+)"))
  if bound is None:
    return None
  return index, bound + (compare.find(r"direction=(\w+)") == "LE")


def _step(module: Module, body: str, name: str) -> int:
  """Parses what the body adds to one element of its state; default: 1."""
  instructions = module.computations[body]
  update = instructions.get(name)
  while update is not None and update.opcode in _SAME:
    update = instructions.get(update.operands[0])
  if update is None:
    return 1
  inner = module.inside(update)
  constants = [instructions.get(n) for n in update.operands]
  constants += [i for i in inner.values() if i.opcode == "constant"]
  if update.opcode != "add" and all(i.opcode != "add" for i in inner.values()):
    return 1
  steps = [i.constant for i in constants if i is not None and i.constant]
  return max(1, steps[0]) if steps else 1


def flops(module: Module, computation: str) -> float:
  """Multiplications and additions of a computation's matrix products.

  XLA for TPU writes batch and head dimensions as windows that are padded or
  dilated: only the taps that fall on data are counted.
  """
  instructions = module.computations[computation]
  total = 0.0
  for i in instructions.values():
    if i.opcode == "fusion":
      total += flops(module, i.called)
    elif i.opcode in ("dot", "convolution"):
      left, right = (
        instructions[name].arrays[0].dims for name in i.operands[:2]
      )
      count = _dot_terms if i.opcode == "dot" else _convolution_terms
      total += 2.0 * count(i, left, right)
  return total


def _dot_terms(i: Instruction, left, right) -> float:
  contracted = numbers(i.find(r"lhs_contracting_dims=\{([\d,]*)\}") or "")
  return math.prod(i.arrays[0].dims) * math.prod(left[d] for d in contracted)


def _convolution_terms(i: Instruction, left, right) -> float:
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.text).groups()
  lhs, rhs, out = (
    dict(zip(names, dims, strict=True))
    for names, dims in zip(labels, (left, right, i.arrays[0].dims), strict=True)
  )
  window = i.find(r"window=\{([^}]*)\}") or ""

  def option(name: str, axis: int, default: int) -> int:
    sizes = re.search(rf"\b{name}=([\dx_\-]+)", window)
    return numbers(sizes.group(1).split("x")[axis])[0] if sizes else default

  terms = out["b"] * out["f"] * rhs["i"]
  for axis in range(len(lhs) - 2):
    key = str(axis)
    terms *= _taps(
      lhs[key],
      rhs[key],
      out[key],
      option("stride", axis, 1),
      option("pad", axis, 0),
      option("lhs_dilate", axis, 1),
      option("rhs_dilate", axis, 1),
    )
  return terms


@functools.lru_cache(maxsize=4096)
def _taps(
  size: int,
  kernel: int,
  out: int,
  stride: int,
  pad: int,
  dilate: int,
  kernel_dilate: int,
) -> int:
  """Pairs of output and kernel positions that meet an element, on one axis."""
  place = (
    np.arange(out)[:, None] * stride
    - pad
    + np.arange(kernel)[None, :] * kernel_dilate
  )
  meets = (place >= 0) & (place <= (size - 1) * dilate) & (place % dilate == 0)
  return int(meets.sum())


def hbm_bytes(module: Module, computation: str, i: Instruction) -> float:
  """Bytes that an instruction reads from and writes to HBM.

  Arrays in VMEM are free. Of what a fusion only slices, the slice is counted;
  of what it updates in place, the update; what it passes on costs nothing.
  """
  return _touched(
    module, computation, i, lambda a: a.padded_bytes if a.in_hbm else 0.0
  )


def vector_elements(module: Module, computation: str, i: Instruction) -> float:
  """Numbers that pass the vector unit.

  All that is read, written or, once more, reduced; of a matrix product only
  what it writes. A plain copy is none of its business.
  """
  if i.opcode == "copy":
    return 0.0
  if matrix_product(module, i):
    names = module.computations[computation]
    return _written(module, i, names, _elements)
  return _touched(module, computation, i, _elements) + _reduced(module, i)


def matrix_product(module: Module, i: Instruction) -> bool:
  """Tells whether a fusion holds a matrix product."""
  inner = module.inside(i).values()
  return any(x.opcode in ("convolution", "dot") for x in inner)


def _elements(array: Array) -> float:
  return float(array.size)


def _reduced(module: Module, i: Instruction) -> float:
  inner = module.inside(i)
  total = 0.0
  for x in inner.values():
    if x.opcode == "fusion":
      total += _reduced(module, x)
    elif x.opcode == "reduce" and x.operands[0] in inner:
      total += inner[x.operands[0]].arrays[0].size
  return total


def _touched(module, computation, i, measure: Callable[[Array], float]):
  names = module.computations[computation]
  total = _written(module, i, names, measure)
  for position, name in enumerate(i.operands):
    for array in names[name].arrays if name in names else ():
      if whole := measure(array):
        part = whole / array.size * _read(module, i, position, array.size)
        total += min(whole, part)
  return total


def _read(module: Module, i: Instruction, position: int, size: int) -> float:
  """Counts the elements of an operand that an instruction reads."""
  if i.opcode in ("slice", "dynamic-slice", "gather") and position == 0:
    return sum(array.size for array in i.arrays)
  if i.opcode == "dynamic-update-slice" and position == 0:
    return 0.0
  if i.opcode != "fusion":
    return size
  inner = module.inside(i)
  wanted = f"parameter({position})"
  waiting = [x.name for x in inner.values() if x.text.startswith(wanted)]
  total = 0.0
  while waiting:
    name = waiting.pop()
    if inner[name].is_root:  # a fusion that only relabels, for its caller
      total += size
    for x in inner.values():
      if name not in x.operands or x.opcode in (*COLLECTIVES, "tuple"):
        continue
      if x.opcode == "bitcast":
        waiting.append(x.name)
      elif "AsyncCollective" not in x.text:
        total += _read(module, x, x.operands.index(name), size)
  return total


def _written(module, i, names, measure: Callable[[Array], float]) -> float:
  producers, scope = [i], names
  if inner := module.inside(i):
    root, scope = module.root(i.called), inner
    producers = [root]
    if root.opcode == "tuple":
      producers = [inner[name] for name in root.operands]
  if len(producers) != len(i.arrays):
    return sum(map(measure, i.arrays))
  total = 0.0
  for producer, array in zip(producers, i.arrays, strict=True):
    while producer.opcode == "bitcast" and producer.operands[0] in scope:
      producer = scope[producer.operands[0]]
    if producer.opcode == "parameter" or producer.opcode in COLLECTIVES:
      continue
    part = 1.0
    if producer.opcode == "dynamic-update-slice":
      update = scope[producer.operands[1]]
      part = sum(a.size for a in update.arrays) / array.size
    total += part * measure(array)
  return total


def kept_bytes(module: Module) -> float:
  """Counts HBM bytes that the forward loops stack for the backward pass.

  They are the elements of such a loop's state into which its body writes one
  slice per turn. Nested loops count once: they use the same memory again.
  """
  total = 0.0
  for computation in module.computations.values():
    for loop in computation.values():
      if loop.opcode == "while" and "transpose(" not in loop.source:
        root = module.root(loop.find(r"body=%?([\w.\-]+)"))
        for name, array in zip(root.operands, loop.arrays, strict=False):
          if array.in_hbm and _stacks(module, root, name):
            total += array.padded_bytes
  return total


def _stacks(module: Module, root: Instruction, name: str) -> bool:
  """Tells whether an element of a body's output is updated by slices."""
  body = next(b for b in module.computations.values() if root.name in b)
  producer, element = body[name], 0
  while producer.opcode in (*_SAME, "get-tuple-element"):
    if producer.opcode == "get-tuple-element":
      element = int(producer.find(r"index=(\d+)"))
    producer = body[producer.operands[0]]
  if producer.opcode == "dynamic-update-slice":
    return True
  inner = module.inside(producer)
  if not inner:
    return False
  last = module.root(producer.called)
  if last.opcode == "tuple":
    last = inner[last.operands[element]]
  while last.opcode in _SAME and last.operands[0] in inner:
    last = inner[last.operands[0]]
  return last.opcode == "dynamic-update-slice"

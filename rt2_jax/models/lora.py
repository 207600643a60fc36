"""LoRA (arXiv:2106.09685): a low-rank product beside a frozen matrix.

`y = x W` becomes `y = x W + alpha / rank * (x A) B`. B starts at zero, so that
step 0 computes what the base computes. A matrix is what its equation contracts
and yields: query heads share one A, as in PEFT and `torch.nn.Linear`.

Letters of an equation: "c" counts matrices that lie in one array (query, key
and value; gate and up), "r" is the rank. Adapters are float32.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rt2_jax.errors import UserError

# Beside the parameter `w` lie `w_lora/a` and `w_lora/b`.
SUFFIX = "_lora"
_ADAPTER = re.compile(rf"(.*){SUFFIX}/[ab]")


class _Axes(NamedTuple):
  """The letters of an equation, by their part in the product."""

  count: str
  inputs: str
  outputs: str
  rows: str  # of x, not contracted


def _axes(equation: str) -> _Axes:
  x, w = equation.split("->")[0].split(",")
  count = "".join(i for i in w if i == "c")
  inputs = "".join(i for i in w if i in x)
  outputs = "".join(i for i in w if i not in count + inputs)
  return _Axes(count, inputs, outputs, "".join(i for i in x if i not in inputs))


def equations(equation: str) -> tuple[str, str]:
  """Splits a product in two, through the rank.

  "btd,cndh->cbtnh" becomes "btd,cdr->cbtr" and "cbtr,crnh->cbtnh".
  """
  (x, _), result = (side.split(",") for side in equation.split("->"))
  count, inputs, outputs, rows = _axes(equation)
  low = f"{count}{rows}r"
  return (
    f"{x},{count}{inputs}r->{low}",
    f"{low},{count}r{outputs}->{result[0]}",
  )


def shapes(
  equation: str, shape: tuple[int, ...], rank: int, name: str
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
  """Returns the shapes of `a` and `b`, and the length of what `a` sums over.

  Args:
    equation: of the product.
    shape: of the weight.
    rank: of the adapter.
    name: of the weight, for the error.

  Raises:
    UserError: the rank is larger than a side of the matrix.
  """
  sizes = dict(zip(equation.split("->")[0].split(",")[1], shape, strict=True))
  count, inputs, outputs, _ = (
    tuple(sizes.get(i, 0) for i in axes) for axes in _axes(equation)
  )
  sides = math.prod(inputs), math.prod(outputs)
  if rank > min(sides):
    raise UserError(
      f"got config.model.lora_rank = {rank} for {name}, whose matrices are "
      f"{sides[0]} x {sides[1]}, expected {min(sides)} at most; lower it, or "
      "leave the matrix out of lora_targets"
    )
  return (*count, *inputs, rank), (*count, rank, *outputs), sides[0]


class Adapter(nn.Module):
  """The parameters `a` and `b`, drawn as PEFT draws them."""

  shape_a: tuple[int, ...]
  shape_b: tuple[int, ...]
  fan_in: int

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    a = self.param("a", _uniform(self.fan_in), self.shape_a)
    return a, self.param("b", nn.initializers.zeros, self.shape_b)


def _uniform(fan_in: int):
  """Draws PyTorch's `kaiming_uniform_(a=sqrt(5))`: ± fan_in**-0.5."""

  def draw(key, shape, dtype=jnp.float32):
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return draw


def base_name(name: str) -> str | None:
  """`".../w_lora/a"` -> `".../w"`; None for a parameter of the base."""
  match = _ADAPTER.fullmatch(name)
  return match and match[1]


def adapters(names: Iterable[str]) -> set[str]:
  """Selects the names of adapters' arrays."""
  return {name for name in names if base_name(name)}


def adapted(names: Iterable[str]) -> set[str]:
  """Lists the names of matrices that have an adapter."""
  return {base_name(name) for name in names} - {None}


def check_targets(targets: Iterable[str], names: set[str], known: set[str]):
  """Compares the patterns with the matrices that got an adapter.

  Args:
    targets: patterns.
    names: matrices with an adapter.
    known: matrices that could have one.

  Raises:
    UserError: a pattern that matches no matrix.
  """
  for pattern in targets:
    if not any(re.search(pattern, name) for name in names):
      raise UserError(
        f"got {pattern!r} in config.model.lora_targets, which matches no "
        f"matrix, expected a pattern of these: {', '.join(sorted(known))}"
      )

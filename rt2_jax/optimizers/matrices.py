"""The table of matrices: which axes of a parameter are inputs and outputs.

Muon and Adafactor treat a parameter matrix by matrix. One array holds many of
them: the layers of a scan, query, key and value, gate and up. Heads are merged
with their width into one axis of the matrix, as in PyTorch's `nn.Linear`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rt2_jax import trees

# A parameter below this name has its layers on axis 0.
_STACKED = re.compile(r"(^|/)(encoderblock|layers)/")


class Axes(NamedTuple):
  """The axes of a parameter, counted from its end; the others count matrices.

  Attributes:
    inputs: summed over in the product.
    outputs: of the product.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


_PLAIN = Axes((-2,), (-1,))

# Name pattern -> axes; the first match wins. A vector, which is scaled or
# added, has none.
LAYERS: tuple[tuple[str, Axes], ...] = (
  (r"(attn_vec_einsum/w|out/kernel)_lora/a$", Axes((-3, -2), (-1,))),
  (r"(q|kv)_einsum/w_lora/b$", Axes((-3,), (-2, -1))),
  (r"(query|key|value)/kernel_lora/b$", Axes((-3,), (-2, -1))),
  (r"_lora/[ab]$", _PLAIN),
  (r"(q|kv)_einsum/w$", Axes((-2,), (-3, -1))),
  (r"(query|key|value)/kernel$", Axes((-3,), (-2, -1))),
  (r"(attn_vec_einsum/w|out/kernel)$", Axes((-3, -2), (-1,))),
  (r"(Dense_\d/kernel|head/kernel|mlp/(gating_einsum|linear))$", _PLAIN),
)
TABLES: tuple[tuple[str, Axes], ...] = (
  (r"img/embedding/kernel$", Axes((-4, -3, -2), (-1,))),
  (r"(input_embedding|pos_embedding)$", _PLAIN),
)
_VECTORS = ((r"(scale|bias)$", None),)


def matrix_axes(name: str) -> Axes | None:
  """Returns the axes of a parameter's matrices, None for vectors.

  Raises:
    UserError: a name that no row of the tables matches.
  """
  return trees.first_match(name, (*_VECTORS, *LAYERS, *TABLES))


def within_a_layer(name: str) -> bool:
  """Tells matrices within the layers, and the projector, from tables."""
  return any(re.search(pattern, name) for pattern, _ in LAYERS)


def block_axes(name: str, ndim: int) -> tuple[int, ...]:
  """Returns the axes of one matrix or vector: all that do not count them."""
  axes = matrix_axes(name)
  if axes is not None:
    return axes.inputs + axes.outputs
  first = 1 if _STACKED.search(name) else 0
  return tuple(range(first - ndim, 0))

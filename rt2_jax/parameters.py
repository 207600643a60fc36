"""The table of parameters: everything that follows from a parameter's name.

A name that no row matches is an error wherever the table is read: sharding,
decay, optimizers, dtypes. A new parameter needs one row here.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from jax.sharding import PartitionSpec as P

from rt2_jax import trees


class Axes(NamedTuple):
  """The axes of a parameter, counted from its end; the others count matrices.

  One array holds many matrices: the layers of a scan, query, key and value,
  gate and up. Heads are merged with their width into one axis of the matrix, as
  in PyTorch's `nn.Linear`.

  Attributes:
    inputs: summed over in the product.
    outputs: of the product.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


_PLAIN = Axes((-2,), (-1,))
_TO_HEADS = Axes((-3,), (-2, -1))
_FROM_HEADS = Axes((-3, -2), (-1,))
# The decoder's projections to heads have their heads before their inputs.
_HEADS_FIRST = Axes((-2,), (-3, -1))
_PATCH = Axes((-4, -3, -2), (-1,))


@dataclasses.dataclass(frozen=True)
class Row:
  """What holds for the parameters of one name.

  Attributes:
    split: how the last dimensions are split over the mesh. Axes to the left,
      such as the stacked layers, stay whole, so that a scan over layers moves
      no data.
    matrix: inputs and outputs of its matrices; None for a vector, which is
      scaled or added.
    decays: decoupled weight decay applies.
    muon: "muon" updates it, as a matrix within a layer; AdamW does the rest.
    float32: kept in float32 where others are stored in fewer bits.
  """

  split: P
  matrix: Axes | None = None
  decays: bool = False
  muon: bool = False
  float32: bool = False


def _vector() -> Row:
  return Row(P(), float32=True)


def _layer(split: P, matrix: Axes) -> Row:
  return Row(split, matrix, decays=True, muon=True)


def _adapter(matrix: Axes) -> Row:
  # Not split: adapters are small, and their gradients are summed once.
  return Row(P(), matrix, decays=True, muon=True, float32=True)


# Name pattern -> row; the first match wins. Optimizer states end in their
# parameter's name and follow it.
PARAMETERS: tuple[tuple[str, Row], ...] = (
  (r"(scale|bias)$", _vector()),
  (r"(query|key|value)/kernel_lora/b$", _adapter(_TO_HEADS)),
  (r"(^|/)(q|kv|qkv)_einsum/w_lora/b$", _adapter(_TO_HEADS)),
  (r"(attn_vec_einsum/w|out/kernel)_lora/a$", _adapter(_FROM_HEADS)),
  (r"_lora/[ab]$", _adapter(_PLAIN)),
  (r"img/embedding/kernel$", Row(P("fsdp"), _PATCH, decays=True)),
  (r"img/pos_embedding$", Row(P("fsdp"), _PLAIN)),
  (
    r"(query|key|value)/kernel$",
    _layer(P("fsdp", "model", None), _TO_HEADS),
  ),
  (r"out/kernel$", _layer(P("model", None, "fsdp"), _FROM_HEADS)),
  (r"Dense_0/kernel$", _layer(P("fsdp", "model"), _PLAIN)),
  (r"Dense_1/kernel$", _layer(P("model", "fsdp"), _PLAIN)),
  (r"img/head/kernel$", _layer(P("fsdp"), _PLAIN)),
  (r"llm/embedder/input_embedding$", Row(P("fsdp"), _PLAIN)),
  (
    r"(^|/)q(kv)?_einsum/w$",
    _layer(P("model", "fsdp", None), _HEADS_FIRST),
  ),
  # Key and value heads may be fewer than the chips of the model axis.
  (r"(^|/)kv_einsum/w$", _layer(P("fsdp", None), _HEADS_FIRST)),
  (
    r"(^|/)attn_vec_einsum/w$",
    _layer(P("model", None, "fsdp"), _FROM_HEADS),
  ),
  (r"mlp/gating_einsum$", _layer(P("fsdp", "model"), _PLAIN)),
  (r"mlp/linear$", _layer(P("model", "fsdp"), _PLAIN)),
)


def row(name: str) -> Row:
  """Finds the row of a parameter.

  Raises:
    UserError: a name that no row matches.
  """
  return trees.first_match(name, PARAMETERS)

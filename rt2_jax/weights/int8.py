"""Weights in 8 bits: each matrix as int8 with a scale for each output.

A robot's action reads all matrices of the decoder at every pass, which is what
its time goes into; int8 is half of bfloat16's bytes. Products are computed in
the compute dtype as before. The token table, vectors and adapters stay as they
are.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import qwix

from rt2_jax import parameters, trees
from rt2_jax.models.weight import Int8


def quantize(params: dict) -> dict:
  """Rounds the matrices that `models.weight` multiplies by.

  Args:
    params: the parameter tree, on devices.

  Returns:
    The same tree with `Int8` in their places.
  """
  flat = trees.flatten(params)
  matrices = {name: x for name, x in flat.items() if _is_matrix(name)}
  return trees.unflatten(flat | _rounded(matrices))


def _is_matrix(name: str) -> bool:
  """Muon's are the matrices within layers; adapters stay in float32."""
  row = parameters.row(name)
  return row.muon and not row.float32


@jax.jit
def _rounded(matrices: dict[str, jax.Array]) -> dict[str, Int8]:
  return {
    name: jax.tree.map(functools.partial(_round, name), x)
    for name, x in matrices.items()
  }


def _round(name: str, x: jax.Array) -> Int8:
  summed = {axis % x.ndim for axis in parameters.row(name).matrix.inputs}
  outputs = [axis for axis in range(x.ndim) if axis not in summed]
  found: Any = qwix.quantize(
    x.astype(jnp.float32), jnp.int8, channelwise_axes=outputs
  )
  return Int8(found.qvalue, found.scale)

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
  return trees.unflatten({n: quantize_one(n, x) for n, x in flat.items()})


def quantize_one(name: str, x: jax.Array) -> jax.Array | Int8:
  """Rounds the parameter of a name, if it is such a matrix."""
  row = parameters.row(name)
  # Muon's are the matrices within layers; adapters stay in float32.
  return x if row.float32 or not row.muon else _rounded(x, row.matrix.inputs)


@functools.partial(jax.jit, static_argnames="inputs")
def _rounded(x: jax.Array, inputs: tuple[int, ...]) -> Int8:
  summed = {axis % x.ndim for axis in inputs}
  outputs = [axis for axis in range(x.ndim) if axis not in summed]
  found: Any = qwix.quantize(
    x.astype(jnp.float32), jnp.int8, channelwise_axes=outputs
  )
  return Int8(found.qvalue, found.scale)

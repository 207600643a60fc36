"""Checksums of arrays, computed where the arrays live.

Every word of an array is mixed with its position by a bijection, and the
results are added modulo 2^32. So any changed bit changes the sum; integer sums
have no order, so the sum is the same on any mesh and any number of hosts. A
position is one number per axis, so arrays may hold more than 2^32 elements.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Odd constants of murmur3's finalizer and of xxhash.
_MIX = (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))
_AXIS, _SEED = np.uint32(0x9E3779B1), np.uint32(0x27D4EB2F)
_HELD = "bfloat16"  # the type in which a policy holds most parameters


class Measured(NamedTuple):
  """What is kept of one array.

  Attributes:
    sums: the checksum as 8 hex digits, by the type of the numbers: the
      array's own; for float32 also bfloat16, to which a reader may round.
    finite: whether every number is.
  """

  sums: dict[str, str]
  finite: bool


def measure(tree: Any, rounded: bool = False) -> dict[str, Measured]:
  """Measures every array of a tree, by its name; the same on all processes.

  Args:
    tree: of arrays.
    rounded: also as bfloat16, for a reader that rounds.
  """
  arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
  found = jax.device_get(_measure_all(arrays, rounded))
  return {
    name: Measured(
      {kind: f"{int(value):08x}" for kind, value in sums.items()}, bool(finite)
    )
    for name, (sums, finite) in zip(names(tree), found, strict=True)
  }


def names(tree: Any) -> list[str]:
  """Names of a tree's arrays, such as "0/mu/llm/final_norm/scale"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [
    jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
  ]


def differs(found: Measured, kept: Mapping[str, str]) -> bool | None:
  """Tells whether an array is another one than the one whose sums were kept.

  Returns:
    None where no sum of the array's type was kept.
  """
  both = found.sums.keys() & kept.keys()
  # bfloat16 alone would not see what rounding removes.
  kind = min(both, key=lambda kind: kind == _HELD, default=None)
  return None if kind is None else found.sums[kind] != kept[kind]


@functools.partial(jax.jit, static_argnums=1)
def _measure_all(
  arrays: list[jax.Array], rounded: bool
) -> list[tuple[dict, jax.Array]]:
  return [_measure(x, rounded) for x in arrays]


def _measure(
  x: jax.Array, rounded: bool
) -> tuple[dict[str, jax.Array], jax.Array]:
  sums = {str(x.dtype): _sum(x)}
  if rounded and x.dtype == jnp.float32:
    sums[_HELD] = _sum(x.astype(_HELD))
  is_float = jnp.issubdtype(x.dtype, jnp.floating)
  return sums, jnp.isfinite(x).all() if is_float else jnp.bool_(True)


def _sum(x: jax.Array) -> jax.Array:
  """Computes the checksum, uint32[]."""
  words = x.astype(jnp.uint8) if x.dtype == bool else x
  bits = jnp.dtype(f"uint{8 * words.dtype.itemsize}")
  words = jax.lax.bitcast_convert_type(words, bits).astype(jnp.uint32)
  return _mix(words ^ _positions(x.shape)).sum(dtype=jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """Sums one pseudorandom number per axis for each position."""
  whole = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    start = np.uint32((int(_SEED) * (2 * axis + 1)) & 0xFFFFFFFF)
    along = _mix(jnp.arange(size, dtype=jnp.uint32) * _AXIS + start)
    whole += along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
  return whole


def _mix(word: jax.Array) -> jax.Array:
  """Applies murmur3's finalizer, a bijection of uint32."""
  word = (word ^ (word >> 16)) * _MIX[0]
  word = (word ^ (word >> 13)) * _MIX[1]
  return word ^ (word >> 16)

"""Checksums of arrays, computed where the arrays live.

Every word of an array is mixed with its position by a bijection, and the
results are added modulo 2^32. So any changed bit changes the sum; integer sums
have no order, so the sum is the same on any mesh and any number of hosts. A
position is one number per axis, so arrays may hold more than 2^32 elements.
"""

from __future__ import annotations

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


def measure(tree: Any) -> dict[str, Measured]:
  """Measures every array of a tree, by its name; the same on all processes."""
  leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
  # One after another: on CPUs, programs that wait for each other's devices in
  # the same threads may wait for ever.
  found = [jax.device_get(_measure(leaf)) for leaf in leaves]
  return {
    name: Measured(
      {
        kind: f"{value:08x}"
        for kind, value in zip(_kinds(leaf.dtype), sums, strict=True)
      },
      not bad,
    )
    for name, leaf, (*sums, bad) in zip(names(tree), leaves, found, strict=True)
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


def _kinds(dtype: np.dtype) -> list[str]:
  """Lists the types in which an array's numbers are summed."""
  rounded = [_HELD] if dtype == jnp.float32 else []
  return [str(dtype), *rounded]


# performance: one reduction, so that an array is read once, and a program for
# each shape and sharding: the first checkpoint waits until all have compiled.
@jax.jit
def _measure(x: jax.Array) -> jax.Array:
  """Computes a checksum for each of `_kinds`, and 1 for not finite.

  Returns:
    uint32[kinds + 1].
  """
  positions = _positions(x.shape)
  terms = [_mix(_words(x.astype(kind)) ^ positions) for kind in _kinds(x.dtype)]
  is_float = jnp.issubdtype(x.dtype, jnp.floating)
  bad = ~jnp.isfinite(x) if is_float else jnp.zeros(x.shape, bool)
  terms.append(bad.astype(jnp.uint32))
  zeros = [np.uint32(0)] * len(terms)
  return jnp.stack(jax.lax.reduce(terms, zeros, _join, range(x.ndim)))


def _join(one: list[jax.Array], other: list[jax.Array]) -> list[jax.Array]:
  """Adds the checksums; any number that is not finite counts as one."""
  sums = [a + b for a, b in zip(one[:-1], other[:-1], strict=True)]
  return [*sums, one[-1] | other[-1]]


def _words(x: jax.Array) -> jax.Array:
  """Returns an array's bits as uint32."""
  x = x.astype(jnp.uint8) if x.dtype == bool else x
  bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  return jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


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

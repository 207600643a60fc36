"""A stack of equal layers: how its parameters are held, and run.

Checkpoints, training and TPUs have one array for all layers, with layers on
axis 0, over which a loop goes. XLA for GPUs copies a layer's weights out of
that array before each product, which takes more time than to read them. A
policy there holds a list of L arrays, see `held_params`, and has no loop.

Shapes: L layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Flax's name of what a caller may ask to see beside the results.
INTERMEDIATES = "intermediates"


def run(
  layer: Callable, block: nn.Module, depth: int, x: jax.Array, *per_layer: Any
) -> tuple[jax.Array, Any]:
  """Applies all layers, one after the other.

  Args:
    layer: `(block, x, *per_layer) -> (x, result)`.
    block: module whose parameters are those of all layers.
    depth: L.
    x: what the first layer reads.
    *per_layer: arrays with layers on axis 0.

  Returns:
    What the last layer gives, and all results, stacked on axis 0.
  """
  if any(map(_is_apart, _leaves(block.variables.get("params", {})))):
    return _one_by_one(layer, block, depth, x, *per_layer)
  scan = nn.scan(
    layer,
    variable_axes={"params": 0, INTERMEDIATES: 0},
    split_rngs={"params": True},
    length=depth,
  )
  return scan(block, x, *per_layer)


def _is_apart(leaf: Any) -> bool:
  return isinstance(leaf, list)


def _leaves(params: Any) -> list[Any]:
  return jax.tree.leaves(params, is_leaf=_is_apart)


def _one_by_one(layer, block, depth, x, *per_layer):
  results = []
  for i in range(depth):
    of_layer = functools.partial(_take, i)
    one = nn.map_variables(layer, "params", of_layer)
    x, result = one(block, x, *of_layer(per_layer))
    results.append(result)
  return x, jax.tree.map(lambda *each: jnp.stack(each), *results)


def _take(i: int, tree: Any) -> Any:
  """Entry i of every list and array."""
  return jax.tree.map(lambda leaf: leaf[i], tree, is_leaf=_is_apart)

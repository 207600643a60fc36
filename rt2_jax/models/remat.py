"""Rematerialization: a layer keeps some products and computes the rest again.

performance: saves memory for activations at the cost of arithmetic.
`variants.REMAT` says which products each policy keeps.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from rt2_jax.models.variants import GATED, REMAT, UNGATED


def ungated(product: jax.Array) -> jax.Array:
  """Marks a product with weights that "ungated" and "dots" keep."""
  return checkpoint_name(product, UNGATED)


def gated(product: jax.Array) -> jax.Array:
  """Marks a product with a gated MLP's weights, which "dots" keeps."""
  return checkpoint_name(product, GATED)


def rematerialized(layer: Callable, policy: str) -> Callable:
  """Wraps a layer, module or function, so that it keeps what `policy` says.

  Args:
    layer: the body of an `nn.scan`.
    policy: a key of `variants.REMAT`.
  """
  kept = REMAT[policy]
  if kept is None:
    return layer
  saveable = jax.checkpoint_policies.save_only_these_names(*kept)
  # The loop itself already keeps XLA from merging the recomputation.
  return nn.remat(layer, prevent_cse=False, policy=saveable)

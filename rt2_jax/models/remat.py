"""What a layer keeps for the backward pass, and what it computes again."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

_UNGATED = "not of a gated MLP"
_GATED = "of a gated MLP"

# "full": nothing but the layer's input. "dots": also the products with
# weights, which costs memory and saves a quarter of the arithmetic.
# "ungated": of these all but the decoder's gate and up, which are about half of
# that memory and half of that arithmetic.
POLICIES: Mapping[str, Callable | None] = MappingProxyType(
  {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "ungated": jax.checkpoint_policies.save_only_these_names(_UNGATED),
    "dots": jax.checkpoint_policies.save_only_these_names(_UNGATED, _GATED),
  }
)


def ungated(product: jax.Array) -> jax.Array:
  """The same product with weights, marked for "ungated" and "dots"."""
  return checkpoint_name(product, _UNGATED)


def gated(product: jax.Array) -> jax.Array:
  """The same product with a gated MLP's weights, marked for "dots"."""
  return checkpoint_name(product, _GATED)


def rematerialized(layer: Callable, policy: str) -> Callable:
  """A layer, module or function, that keeps what `policy` says.

  Args:
    layer: the body of an `nn.scan`.
    policy: a key of `POLICIES`; "none" keeps everything.
  """
  if policy == "none":
    return layer
  # The loop itself already keeps XLA from merging the recomputation.
  return nn.remat(layer, prevent_cse=False, policy=POLICIES[policy])

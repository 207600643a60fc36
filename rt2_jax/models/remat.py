"""What a layer keeps for the backward pass, and what it computes again."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import flax.linen as nn
import jax

# "full": nothing but the layer's input. "dots": also the products with
# weights, which costs memory and saves a quarter of the arithmetic.
POLICIES: Mapping[str, Callable | None] = MappingProxyType(
  {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  }
)


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

"""The one way to multiply by a weight, with an adapter or without.

Every matrix product of the encoder, the projection and the decoder is
`multiply(x, weight(...))`. The token table and the convolution that cuts an
image into patches are no such products.

Shapes: `equation` names them, see `lora.equations`. Activations are in the
compute dtype; parameters are in their own.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rt2_jax.models import lora
from rt2_jax.models.lora_config import LoraConfig


class Int8(NamedTuple):
  """A parameter in 8 bits, see `weights.int8`.

  Attributes:
    values: int8, of the parameter's shape.
    scale: float32, of size 1 along the axes that its product sums over.
  """

  values: jax.Array
  scale: jax.Array

  def scaled(self, equation: str, y: jax.Array) -> jax.Array:
    """Multiplies the outputs of a product by `values` with their scale.

    A matrix that is scaled before its product is written out first by XLA,
    which takes longer than to read it in 16 bits.

    Args:
      equation: of the product; it names the outputs in the matrix's order.
      y: result of the product, whose dtype stays.
    """
    (_, letters), result = (side.split(",") for side in equation.split("->"))
    sizes = dict(zip(letters, self.scale.shape, strict=True))
    scale = self.scale.reshape([sizes.get(i, 1) for i in result[0]])
    return (y * scale).astype(y.dtype)


class Weight(NamedTuple):
  """A matrix, or several in one array, in the compute dtype or 8 bits.

  Attributes:
    equation: of the product, such as "btd,df->btf".
    w: the base's.
    a: the adapter's first array, None without an adapter.
    b: the adapter's second array.
    scale: factor on the adapter's product.
  """

  equation: str
  w: jax.Array | Int8
  a: jax.Array | None = None
  b: jax.Array | None = None
  scale: float = 1.0

  def parts(self) -> Iterator["Weight"]:
    """Yields the matrices of an array of several, on its axis 0 ("c")."""
    equation = self.equation.replace("c", "")
    if self.a is None:
      yield from (Weight(equation, w) for w in self.w)
    else:
      for each in zip(self.w, self.a, self.b, strict=True):
        yield Weight(equation, *each, self.scale)


def weight(
  module: nn.Module,
  name: str,
  shape: tuple[int, ...],
  equation: str,
  init: Callable,
  config: LoraConfig,
  dtype: Any,
) -> Weight:
  """Declares a parameter of `module`, and its adapter if it is a target.

  A policy's parameter may be `Int8`.

  Args:
    module: whose compact method calls this.
    name: of the parameter.
    shape: of the parameter.
    equation: of its product.
    init: draws it.
    config: says which names are targets.
    dtype: of the product.

  Raises:
    UserError: the rank is larger than a side of the matrix.
  """
  w = module.param(name, init, shape)
  w = w if isinstance(w, Int8) else w.astype(dtype)
  full_name = "/".join((*module.path, name))
  if not config.adapts(full_name):
    return Weight(equation, w)
  shapes = lora.shapes(equation, shape, config.rank, full_name)
  a, b = lora.Adapter(*shapes, name=f"{name}{lora.SUFFIX}")()
  return Weight(equation, w, a.astype(dtype), b.astype(dtype), config.scale)


def multiply(
  x: jax.Array, weight: Weight, product: Callable = jnp.einsum
) -> jax.Array:
  """Multiplies by a weight, and adds the product of its adapter.

  Args:
    x: in the weight's dtype, with the axes of its equation.
    weight: from `weight`.
    product: `(equation, x, w)` of the base.
  """
  y = _base(x, weight, product)
  if weight.a is None:
    return y
  down, up = lora.equations(weight.equation)
  low = jnp.einsum(down, x, weight.a) * weight.scale
  return y + jnp.einsum(up, low, weight.b)


def _base(x: jax.Array, weight: Weight, product: Callable) -> jax.Array:
  if not isinstance(weight.w, Int8):
    return product(weight.equation, x, weight.w)
  y = product(weight.equation, x, weight.w.values.astype(x.dtype))
  return weight.w.scaled(weight.equation, y)

"""The decoder's MLP, with a gradient of its weights that suits a CPU too.

JAX sums the gradient of a weight over two axes, examples and positions. XLA for
CPU first writes a transposed copy of both factors for that, number by number,
which takes longer than the product. Summed over one axis it does not, and a
TPU's step is predicted to take the same time.

Shapes: B examples, T positions, D width, F hidden size. `dtype` is the compute
dtype; parameters are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rt2_jax.models.remat import gated
from rt2_jax.models.variants import GemmaConfig
from rt2_jax.models.weight import Int8, Weight, multiply, weight


class GatedMlp(nn.Module):
  """`linear(gelu(gate(x)) * up(x))` with tanh-gelu and without biases."""

  config: GemmaConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """dtype[B, T, D] -> dtype[B, T, D]."""
    d, f, normal = x.shape[-1], self.config.mlp_dim, nn.initializers.normal
    lora, dtype = self.config.lora, x.dtype
    gating = weight(
      self,
      "gating_einsum",
      (2, d, f),
      "btd,cdf->cbtf",
      normal(d**-0.5),
      lora,
      dtype,
    )
    linear = weight(
      self, "linear", (f, d), "btf,fd->btd", normal(f**-0.5), lora, dtype
    )
    gate, up = map(gated, _gate_and_up(x, gating))
    hidden = nn.gelu(gate, approximate=True) * up
    return gated(multiply(hidden, linear, _product))


def _gate_and_up(x: jax.Array, gating: Weight) -> tuple[jax.Array, jax.Array]:
  """Multiplies by the two matrices of one array: dtype[B, T, F] twice."""
  if isinstance(gating.w, Int8):
    return tuple(multiply(x, gating, _batched))
  if gating.a is not None:
    return tuple(multiply(x, w, _product) for w in gating.parts())
  return jax.lax.platform_dependent(x, gating.w, cuda=_together, default=_apart)


def _together(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
  return tuple(_batched("", x, w))


def _apart(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
  gate, up = (product(x, matrix) for matrix in w)
  return gate, up


def _batched(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  """dtype[B, T, D], dtype[2, D, F] -> dtype[2, B, T, F].

  XLA for GPUs reads both matrices where they lie, see docs/one_gpu.md.
  """
  del equation
  both = jnp.broadcast_to(x, (len(w), *x.shape))
  return jnp.einsum("cbtd,cdf->cbtf", both, w)


def _product(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
  del equation  # the last axis of x and the first of w
  return product(x, w)


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
  """dtype[B, T, D], dtype[D, F] -> dtype[B, T, F]."""
  return jnp.einsum("btd,df->btf", x, w)


def _product_forward(x, w):
  return product(x, w), (x, w)


def _product_backward(saved, gradient):
  x, w = saved
  of_x = jnp.einsum("btf,df->btd", gradient, w)
  rows, gradients = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
  return of_x, jnp.einsum("rd,rf->df", rows, gradients)


product.defvjp(_product_forward, _product_backward)

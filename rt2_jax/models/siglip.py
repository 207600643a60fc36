"""SigLIP: a vision transformer that turns an image into decoder tokens.

Parameter names and shapes are those of the public PaliGemma checkpoints
(`img/…`, layers stacked on axis 0); see big_vision `models/vit.py` for the
format. No class token and no pooling: one token per patch, row by row.

Shapes: B images, H x W pixels, n patches, D encoder width, E decoder width.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rt2_jax.errors import UserError
from rt2_jax.models import layers
from rt2_jax.models.remat import rematerialized, ungated
from rt2_jax.models.variants import SiglipConfig
from rt2_jax.models.weight import multiply, weight

# How activations are laid out between blocks. `sharding.py` says what the names
# mean on a mesh; without rules for them the constraint does nothing.
_TOKENS = ("batch", "length", "embed")


class Linear(nn.Module):
  """A product with `kernel`, plus `bias`, as in Flax's `DenseGeneral`.

  Attributes:
    equation: of the product.
    shape: of the kernel; it ends in those of the bias.
    config: the encoder's.
    mark: what the product is marked with for `variants.REMAT`.
  """

  equation: str
  shape: tuple[int, ...]
  config: SiglipConfig
  mark: Callable = lambda product: product

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype, lora = self.config.dtype, self.config.lora
    left, result = self.equation.split("->")
    kernel_axes = left.split(",")[1]
    outputs = sum(i in result for i in kernel_axes)

    def init(key, shape):
      flat = -1, math.prod(shape[-outputs:])
      flat = math.prod(shape) // flat[1], flat[1]
      return nn.initializers.lecun_normal()(key, flat).reshape(shape)

    kernel = weight(
      self, "kernel", self.shape, self.equation, init, lora, dtype
    )
    bias = self.param("bias", nn.initializers.zeros, self.shape[-outputs:])
    product = self.mark(multiply(x.astype(dtype), kernel))
    return product + bias.astype(dtype).reshape(1, 1, *bias.shape)


class Attention(nn.Module):
  """Every patch attends to all, with softmax in float32."""

  config: SiglipConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """float32[B, n, D] -> dtype[B, n, D]."""
    c = self.config
    heads = c.width, c.num_heads, c.width // c.num_heads
    q, k, v = (
      Linear("bnd,dhk->bnhk", heads, c, ungated, name=name)(x)
      for name in ("query", "key", "value")
    )
    y = nn.dot_product_attention(
      q, k, v, dtype=c.dtype, force_fp32_for_softmax=True
    )
    shape = *heads[1:], c.width
    return Linear("bnhk,hkd->bnd", shape, c, ungated, name="out")(y)


class MlpBlock(nn.Module):
  """Two dense layers with tanh-gelu between."""

  config: SiglipConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    x = Linear("bnd,df->bnf", (c.width, c.mlp_dim), c, ungated, name="Dense_0")(
      x
    )
    x = nn.gelu(x, approximate=True)
    return Linear("bnf,fd->bnd", (c.mlp_dim, c.width), c, name="Dense_1")(x)


class EncoderBlock(nn.Module):
  """Attention, then MLP, each on a normalised input and added to it."""

  config: SiglipConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """dtype[B, n, D] -> dtype[B, n, D]."""
    config = self.config
    y = nn.LayerNorm(epsilon=1e-6, dtype="float32")(x)
    x += Attention(config, name="MultiHeadDotProductAttention_0")(y)
    y = nn.LayerNorm(epsilon=1e-6, dtype="float32")(x)
    x += MlpBlock(config)(y)
    return nn.with_logical_constraint(x, _TOKENS)


class Encoder(nn.Module):
  """The stack of blocks and the last normalisation."""

  config: SiglipConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """dtype[B, n, D] -> float32[B, n, D]."""

    def layer(block, x):
      return block(x), None

    depth, remat = self.config.depth, self.config.remat
    block = EncoderBlock(self.config, name="encoderblock")
    x = nn.with_logical_constraint(x, _TOKENS)
    x, _ = layers.run(rematerialized(layer, remat), block, depth, x)
    return nn.LayerNorm(epsilon=1e-6, dtype="float32", name="encoder_norm")(x)


def sines_and_cosines(
  rng: jax.Array, shape: tuple[int, int, int], dtype: Any = jnp.float32
) -> jax.Array:
  """Positions to start from: where a patch lies, in waves of many lengths.

  Trained from scratch on little data, a model would spend most of it on finding
  out which patches are neighbours (MoCo v3's embedding, here learnt on).

  Args:
    rng: not used; nothing is drawn.
    shape: (1, n, D), n a square and D a multiple of 4.
    dtype: of the result.

  Returns:
    dtype[1, n, D]: sine and cosine of the column, then of the row.
  """
  del rng
  _, n, width = shape
  side = math.isqrt(n)
  assert side * side == n, n
  assert width % 4 == 0, width
  waves = 1e4 ** -(jnp.arange(width // 4) / (width // 4 - 1))
  rows, columns = jnp.divmod(jnp.arange(n), side)
  angles = [place[:, None] * waves for place in (columns, rows)]
  parts = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
  return jnp.concatenate(parts, -1)[None].astype(dtype)


class Siglip(nn.Module):
  """The encoder, in three steps that can be called one by one.

  Attributes:
    config: its size.
    out_width: width of the decoder that reads the tokens.
  """

  config: SiglipConfig
  out_width: int

  def setup(self):
    config = self.config
    patch = (config.patch_size, config.patch_size)
    self.embedding = nn.Conv(
      config.width, patch, strides=patch, padding="VALID", dtype=config.dtype
    )
    self.pos_embedding = self.param(
      "pos_embedding",
      sines_and_cosines,
      (1, config.num_tokens, config.width),
    )
    self.Transformer = Encoder(config)
    # Not zero, as it is in big_vision: trained from scratch, the decoder would
    # first have to discover that there is an image at all.
    shape = config.width, self.out_width
    self.head = Linear("bnd,de->bne", shape, config)

  def embed(self, images: jax.Array) -> jax.Array:
    """Cuts images into patches and projects each.

    Args:
      images: float32[B, H, W, 3] in [-1, 1].

    Returns:
      dtype[B, n, D], row by row, positions not yet added.

    Raises:
      UserError: the images are not of the configured size.
    """
    size = self.config.image_size
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
      raise UserError(
        f"got images of shape {images.shape}, expected [B, {size}, {size}, 3]: "
        "resize them, or set image_size"
      )
    patches = self.embedding(images)
    return patches.reshape(patches.shape[0], -1, self.config.width)

  def encode(self, images: jax.Array) -> jax.Array:
    """float32[B, H, W, 3] in [-1, 1] -> float32[B, n, D], normalised."""
    x = self.embed(images)
    return self.Transformer(x + self.pos_embedding.astype(x.dtype))

  def __call__(self, images: jax.Array) -> jax.Array:
    """float32[B, H, W, 3] in [-1, 1] -> dtype[B, n, E], decoder tokens."""
    return self.head(self.encode(images))

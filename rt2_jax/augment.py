"""The one image path: uint8 camera images to what the encoder reads.

Training crops and colours at random, evaluation and acting do neither; all
resize in `_resize`. It runs on the accelerator, and gives the pixels that
`images.resize` gives on the host, bit for bit.

Shapes: B examples, F frames, H x W camera pixels, R x R encoder pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from rt2_jax import ranges
from rt2_jax.images import join_parts, resize_weights
from rt2_jax.ranges import below

# ITU-R BT.601. Numpy: an import must not start JAX, which hosts have to join.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How far training images may be changed; zeros change nothing.

  Attributes:
    crop: largest part of each side that a crop may cut off, e.g. 0.05; crops
      are of whole pixels.
    brightness: largest shift, as a part of full scale, e.g. 0.1.
    contrast: largest relative change, e.g. 0.1.
    saturation: largest relative change, e.g. 0.1.
  """

  crop: Annotated[float, below(1)] = 0.0
  brightness: Annotated[float, below(1)] = 0.0
  contrast: Annotated[float, below(1)] = 0.0
  saturation: Annotated[float, below(1)] = 0.0

  def __post_init__(self):
    ranges.check(Augmentation, "config.augmentation.", vars(self))


def prepare(
  images: jax.Array, resolution: int, image_size: jax.Array | None = None
) -> jax.Array:
  """Resizes images as evaluation and acting see them, without a crop.

  Args:
    images: uint8[B, F, H, W, 3].
    resolution: R.
    image_size: int32[B, 2], height and width of each example's images; what
      lies below and right of them is padding. None: no padding.

  Returns:
    float32[B, F, R, R, 3] in [-1, 1].
  """
  size = _sizes(images, image_size)
  crop = jnp.concatenate([jnp.zeros_like(size), size], -1)
  return _resize(images, crop, resolution, size)


def _sizes(images: jax.Array, image_size: jax.Array | None) -> jax.Array:
  """int32[B, 2]; the whole canvas where nothing is padding."""
  if image_size is not None:
    return jnp.asarray(image_size, jnp.int32)
  whole = jnp.array(images.shape[2:4], jnp.int32)
  return jnp.broadcast_to(whole, (images.shape[0], 2))


def augment(
  images: jax.Array,
  resolution: int,
  config: Augmentation,
  key: jax.Array,
  image_size: jax.Array | None = None,
) -> jax.Array:
  """Crops, resizes and colours images as training sees them.

  All frames of an example change alike.

  Args:
    images: uint8[B, F, H, W, 3].
    resolution: R.
    config: how far images may be changed.
    key: of this step. Row b uses `fold_in(key, b)`, so that an example's
      change depends on (seed, step, row) alone, on any mesh.
    image_size: as in `prepare`.

  Returns:
    float32[B, F, R, R, 3] in [-1, 1].
  """
  if config == Augmentation():
    return prepare(images, resolution, image_size)
  rows = jnp.arange(images.shape[0])
  noise = jax.vmap(
    lambda row: jax.random.uniform(
      jax.random.fold_in(key, row), (7,), minval=-1.0
    )
  )(rows)
  size = _sizes(images, image_size)
  crop = _crops(noise[:, :4], size, config.crop)
  resized = _resize(images, crop, resolution, size)
  scale = jnp.array([config.brightness, config.contrast, config.saturation])
  return _recolour(resized, noise[:, 4:] * scale)


def _crops(noise: jax.Array, size: jax.Array, crop: float) -> jax.Array:
  """Random crops of whole pixels, int32[B, 4] of y, x, height and width.

  Of 0 to `crop` times the side as many pixels are cut off, and 0 to all of them
  before the crop, each number as likely as the others.

  Args:
    noise: float32[B, 4] in [-1, 1).
    size: int32[B, 2].
    crop: largest part of each side that is cut off.
  """

  def one_of(noise, most):
    number = ((noise + 1.0) / 2 * (most + 1)).astype(jnp.int32)
    return jnp.minimum(number, most)  # the product may be rounded up

  cut = one_of(noise[:, :2], (crop * size).astype(jnp.int32))
  return jnp.concatenate([one_of(noise[:, 2:], cut), size - cut], -1)


def _resize(
  images: jax.Array,
  crop: jax.Array,
  resolution: int,
  image_size: jax.Array,
) -> jax.Array:
  """Resizes crops, int32[B, 4] of y, x, height and width in pixels.

  The aspect ratio follows the crop: RT-2 does not letterbox. Two small matrix
  products per image; see `images.resize_weights`.
  """
  height, width = images.shape[2:4]

  def weights(start, length, valid, pixels):
    return resize_weights(start, length, valid, pixels, resolution, jnp)

  def resize(image, box, size):
    rows = weights(box[0], box[2], size[0], height)
    columns = weights(box[1], box[3], size[1], width)
    # Columns first, as Pillow does it.
    sums = jnp.einsum("fhwc,pxw->pfhxc", image.astype(jnp.float32), columns)
    narrow = join_parts(sums, jnp)
    return join_parts(jnp.einsum("fhxc,pyh->pfyxc", narrow, rows), jnp)

  return jax.vmap(resize)(images, crop, image_size) / 127.5 - 1.0


def _recolour(images: jax.Array, change: jax.Array) -> jax.Array:
  """Brightness, contrast, saturation as float32[B, 3] relative changes."""
  brightness, contrast, saturation = (
    change[:, i, None, None, None, None] for i in range(3)
  )
  mean = images.mean((2, 3, 4), keepdims=True)
  images = mean + (images - mean) * (1.0 + contrast)
  grey = (images @ _LUMA)[..., None]
  images = grey + (images - grey) * (1.0 + saturation)
  return jnp.clip(images + 2.0 * brightness, -1.0, 1.0)

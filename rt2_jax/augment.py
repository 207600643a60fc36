"""The one image path: uint8 camera images to what the encoder reads.

Training crops and colours at random, evaluation and acting do neither; all
resize in `_resize`. It runs on the accelerator, and gives the pixels that
`images.resize` gives on the host, bit for bit.

Shapes: B examples, C cameras, F images of an example (camera by camera, each
camera's frames oldest first), H x W camera pixels, R x R encoder pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
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
  """Limits of the random changes to training images; zeros change nothing.

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
    image_size: int32[B, F, 2], height and width of each image; what lies below
      and right of it is padding. None: no padding.

  Returns:
    float32[B, F, R, R, 3] in [-1, 1].
  """
  size = _sizes(images, image_size)
  crop = jnp.concatenate([jnp.zeros_like(size), size], -1)
  return _resize(images, crop, resolution, size)


def _sizes(images: jax.Array, image_size: jax.Array | None) -> jax.Array:
  """Fills in int32[B, F, 2]: the whole canvas where nothing is padding.

  A missing image counts as one black pixel, so that no weight is 0 / 0.
  """
  if image_size is not None:
    return jnp.maximum(jnp.asarray(image_size, jnp.int32), 1)
  whole = jnp.array(images.shape[2:4], jnp.int32)
  return jnp.broadcast_to(whole, (*images.shape[:2], 2))


def shown(image_size: jax.Array) -> jax.Array:
  """Tells which images exist: a missing camera's have 0 x 0 pixels.

  Args:
    image_size: int32[B, F, 2].

  Returns:
    bool[B, F].
  """
  return (jnp.asarray(image_size) > 0).all(-1)


def augment(
  images: jax.Array,
  resolution: int,
  config: Augmentation,
  key: jax.Array,
  image_size: jax.Array | None = None,
  cropped: Sequence[bool] = (True,),
  fraction: jax.Array | None = None,
) -> jax.Array:
  """Crops, resizes and colours images as training sees them.

  All frames of a camera change alike; each camera changes on its own.

  Args:
    images: uint8[B, F, H, W, 3].
    resolution: R.
    config: how far images may be changed.
    key: of this step. Row b uses `fold_in(key, b)`, so that an example's
      change depends on (seed, step, row) alone, on any mesh.
    image_size: as in `prepare`.
    cropped: C values, whether a camera's images may be cropped.
    fraction: float32[B], how much of `config` each row may be changed by; None
      for all of it.

  Returns:
    float32[B, F, R, R, 3] in [-1, 1].
  """
  if config == Augmentation():
    return prepare(images, resolution, image_size)
  batch, count = images.shape[:2]
  history = count // len(cropped)
  noise = _noise(key, batch, len(cropped)).repeat(history, axis=1)
  parts = np.float32(cropped).repeat(history)[:, None] * config.crop
  size = _sizes(images, image_size)
  scale = jnp.array([config.brightness, config.contrast, config.saturation])
  if fraction is not None:
    parts, scale = (fraction[:, None, None] * each for each in (parts, scale))
  crop = _crops(noise[..., :4], size, parts)
  resized = _resize(images, crop, resolution, size)
  return _recolour(resized, noise[..., 4:] * scale)


def row_fractions(
  fractions: Sequence[float], source: jax.Array
) -> jax.Array | None:
  """Looks up each row's `fraction` by its source, int32[B].

  Without a source of its own fraction a program is that of all of it.
  """
  if set(fractions) <= {1.0}:
    return None
  return jnp.asarray(fractions, jnp.float32)[source]


def _noise(key: jax.Array, batch: int, cameras: int) -> jax.Array:
  """Draws float32[B, C, 7] in [-1, 1): 4 numbers for a crop, 3 for colours.

  The first camera's do not depend on how many cameras there are.
  """

  def draw(row, camera):
    own = jax.random.fold_in(key, row)
    own = jax.random.fold_in(own, camera) if camera else own
    return jax.random.uniform(own, (7,), minval=-1.0)

  rows = jnp.arange(batch)
  each = [
    jax.vmap(functools.partial(draw, camera=c))(rows) for c in range(cameras)
  ]
  return jnp.stack(each, 1)


def _crops(noise: jax.Array, size: jax.Array, parts: jax.Array) -> jax.Array:
  """Draws crops of whole pixels, int32[B, F, 4]: y, x, height and width.

  Of 0 to `parts` times the side as many pixels are cut off, and 0 to all of
  them before the crop, each number as likely as the others.

  Args:
    noise: float32[B, F, 4] in [-1, 1).
    size: int32[B, F, 2].
    parts: float32[F, 1] or [B, F, 1], largest part of each side that is cut
      off.
  """

  def one_of(noise, most):
    number = ((noise + 1.0) / 2 * (most + 1)).astype(jnp.int32)
    return jnp.minimum(number, most)  # the product may be rounded up

  cut = one_of(noise[..., :2], (parts * size).astype(jnp.int32))
  return jnp.concatenate([one_of(noise[..., 2:], cut), size - cut], -1)


def _resize(
  images: jax.Array,
  crop: jax.Array,
  resolution: int,
  image_size: jax.Array,
) -> jax.Array:
  """Resizes crops, int32[B, F, 4] of y, x, height and width in pixels.

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
    sums = jnp.einsum("hwc,pxw->phxc", image.astype(jnp.float32), columns)
    narrow = join_parts(sums, jnp)
    return join_parts(jnp.einsum("hxc,pyh->pyxc", narrow, rows), jnp)

  each = jax.vmap(jax.vmap(resize))
  return each(images, crop, image_size) / 127.5 - 1.0


def _recolour(images: jax.Array, change: jax.Array) -> jax.Array:
  """Brightness, contrast, saturation as float32[B, F, 3] relative changes."""
  brightness, contrast, saturation = (
    change[..., i, None, None, None] for i in range(3)
  )
  mean = images.mean((2, 3, 4), keepdims=True)
  images = mean + (images - mean) * (1.0 + contrast)
  grey = (images @ _LUMA)[..., None]
  images = grey + (images - grey) * (1.0 + saturation)
  return jnp.clip(images + 2.0 * brightness, -1.0, 1.0)

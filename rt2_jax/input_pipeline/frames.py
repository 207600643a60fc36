"""Encoded frames to pixels on a canvas: the host's part of the image path.

Images lie whole on a canvas, and the devices resize them. One that does not fit
on it is resized on the host, by the function that the devices compute
(`images.resize`): the encoder sees the same pixels either way.

Shapes: F frames of an example, H x W pixels of the canvas, R x R pixels of the
encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rt2_jax import images
from rt2_jax.errors import UserError

tf.config.set_visible_devices([], "GPU")  # accelerators belong to JAX

Canvas = tuple[int, int]  # height, width

_JPEG = b"\xff\xd8\xff"  # how every JPEG begins


def canvas_for(examples: Sequence[Any], resolution: int) -> Canvas:
  """Chooses the canvas: it holds each `largest_image` and R x R pixels."""
  sizes = [(resolution, resolution), *(e.largest_image for e in examples)]
  height, width = np.max(sizes, 0)
  return int(height), int(width)


def load_frames(
  encoded: Sequence[bytes], where: str, canvas: Canvas, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
  """Decodes the frames of an example and lays them on the canvas.

  Args:
    encoded: F image files.
    where: they lie, for errors.
    canvas: (H, W).
    resolution: R; frames that do not fit on the canvas, or that differ in size,
      are resized to R x R.

  Returns:
    uint8[F, H, W, 3], black beside the frames, and their size int32[2].

  Raises:
    UserError: see `decode_image`.
  """
  frames = [decode_image(image, where) for image in encoded]
  sizes = np.array([frame.shape[:2] for frame in frames])
  if (sizes != sizes[0]).any() or (sizes > canvas).any():
    frames = [images.resize(frame, resolution) for frame in frames]
  height, width = frames[0].shape[:2]
  placed = np.zeros((len(frames), *canvas, 3), np.uint8)
  placed[:, :height, :width] = frames
  return placed, np.array([height, width], np.int32)


def decode_image(image: bytes, where: str) -> np.ndarray:
  """Decodes an image file to uint8[H, W, 3], see `images.decode`.

  Raises:
    UserError: bytes that are no image, or an image of an unlikely size; says
      `where` it lies.
  """
  try:
    if not image.startswith(_JPEG):
      return images.decode(image)
    pixels = _decode_jpeg(image).numpy()
    images.check_sides(*pixels.shape[:2])
  except UserError as error:
    raise UserError(f"{where}: {error}") from error
  except tf.errors.InvalidArgumentError as error:
    raise UserError(
      f"{where}: got {len(image)} bytes that do not decode as an image, "
      "expected e.g. JPEG or PNG; repair or remove this example"
    ) from error
  return pixels


def _decode_jpeg(image) -> tf.Tensor:
  # The accurate transform is Pillow's, too: what a robot's own program decodes
  # equals what training saw.
  return tf.io.decode_jpeg(image, 3, dct_method="INTEGER_ACCURATE")


def load_frame_in_graph(
  image: tf.Tensor, canvas: Canvas, resolution: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Does what `load_frames` does for one, in the graph.

  Errors name no place there.
  """
  pixels = tf.cond(
    tf.strings.substr(image, 0, len(_JPEG)) == _JPEG,
    lambda: _decode_jpeg(image),
    lambda: _in_python(images.decode, image),
  )
  size = tf.shape(pixels)[:2]
  likely = (tf.reduce_min(size) >= images.MIN_SIDE) & (
    tf.reduce_max(size) <= images.MAX_SIDE
  )
  with tf.control_dependencies([tf.debugging.Assert(likely, [size])]):
    pixels = tf.cond(
      tf.reduce_all(size <= canvas),
      lambda: pixels,
      lambda: _in_python(lambda x: images.resize(x, resolution), pixels),
    )
  size = tf.shape(pixels)[:2]
  placed = tf.image.pad_to_bounding_box(pixels, 0, 0, *canvas)
  return tf.ensure_shape(placed, (*canvas, 3)), size


def _in_python(function: Callable, argument: tf.Tensor) -> tf.Tensor:
  pixels = tf.numpy_function(function, [argument], tf.uint8)
  return tf.ensure_shape(pixels, (None, None, 3))

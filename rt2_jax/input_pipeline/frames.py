"""Encoded frames to pixels on a canvas: the host's part of the image path.

Images lie whole on a canvas, and the devices resize them. One that does not fit
on it is resized on the host, by the function that the devices compute
(`images.resize`): the encoder sees the same pixels either way.

Shapes: F frames of an example, H x W pixels of the canvas, R x R pixels of the
encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rt2_jax import images
from rt2_jax.errors import UserError


def canvas_for(examples: Sequence[Any], resolution: int) -> tuple[int, int]:
  """Chooses the canvas: it holds each `largest_image` and R x R pixels.

  Returns:
    height and width.
  """
  sizes = [(resolution, resolution), *(e.largest_image for e in examples)]
  height, width = np.max(sizes, 0)
  return int(height), int(width)


def place_frames(
  encoded: Sequence[bytes], where: str, canvas: np.ndarray, resolution: int
) -> np.ndarray:
  """Decodes the frames of an example and lays them on the canvas.

  Args:
    encoded: F image files.
    where: they lie, for errors.
    canvas: uint8[F, H, W, 3], black; filled from its upper left corner.
    resolution: R; frames that do not fit on the canvas, or that differ in size,
      are resized to R x R.

  Returns:
    int32[2], height and width of the frames.

  Raises:
    UserError: see `decode_image`.
  """
  frames = [decode_image(image, where) for image in encoded]
  sizes = np.array([frame.shape[:2] for frame in frames])
  if (sizes != sizes[0]).any() or (sizes > canvas.shape[1:3]).any():
    frames = [images.resize(frame, resolution) for frame in frames]
  height, width = frames[0].shape[:2]
  for placed, frame in zip(canvas, frames, strict=True):
    placed[:height, :width] = frame
  return np.array([height, width], np.int32)


def decode_image(image: bytes, where: str) -> np.ndarray:
  """Decodes an image file to uint8[H, W, 3], see `images.decode`.

  Raises:
    UserError: as `images.decode`; says `where` the image lies.
  """
  try:
    return images.decode(image)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error

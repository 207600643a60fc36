"""Encoded frames to pixels on a canvas: the host's part of the image path.

Images lie whole on a canvas, and the devices resize them. One that does not fit
on it is resized on the host, by the function that the devices compute
(`images.resize`): the encoder sees the same pixels either way.

Shapes: F images of an example (its cameras' frames), H x W pixels of the
canvas, R x R pixels of the encoder.
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
  encoded: Sequence[bytes | None],
  canvas: np.ndarray,
  resolution: int,
) -> np.ndarray:
  """Decodes the frames of an example and lays them on the canvas.

  Args:
    encoded: F image files; None where a camera is missing.
    canvas: uint8[F, H, W, 3], black; filled from its upper left corner.
    resolution: R; a frame that does not fit on the canvas is resized to R x R.

  Returns:
    int32[F, 2], height and width of each frame; 0 x 0 where there is none.

  Raises:
    UserError: see `images.decode`.
  """
  sizes = np.zeros((len(canvas), 2), np.int32)
  for placed, size, image in zip(canvas, sizes, encoded, strict=True):
    if image is None:
      continue
    frame = images.decode(image)
    if frame.shape[0] > len(placed) or frame.shape[1] > placed.shape[1]:
      frame = images.resize(frame, resolution)
    size[:] = frame.shape[:2]
    placed[: size[0], : size[1]] = frame
  return sizes


def decode_image(image: bytes, where: str) -> np.ndarray:
  """Decodes an image file to uint8[H, W, 3], see `images.decode`.

  Raises:
    UserError: as `images.decode`; says `where` the image lies.
  """
  try:
    return images.decode(image)
  except UserError as error:
    raise UserError(f"{where}: {error}") from error

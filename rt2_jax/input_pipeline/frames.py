"""Encoded frames to pixels on a canvas: the host's part of the image path.

Images lie whole on a canvas, and the devices resize them. One that does not fit
on it is resized on the host, by the function that the devices compute
(`images.resize`): the encoder sees the same pixels either way.

Shapes: F images of an example (its cameras' frames), H x W pixels of the
canvas, R x R pixels of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rt2_jax import images

# Of a pixel of the camera, in pixels of the canvas: 11 and 5 ns, measured.
_RESIZE_COST = 2.0


def canvas_for(
  sizes: Sequence[tuple[int, int]], weights: Sequence[float], resolution: int
) -> tuple[int, int]:
  """Chooses the canvas on which an example costs least.

  Every row pays for the whole canvas. An image that does not fit is resized
  on the host, so that a few large ones do not make all rows large.

  Args:
    sizes: height and width that hold the images of each source; 0 x 0 for any
      size.
    weights: of the sources in the mixture.
    resolution: R; the canvas is at least as large.

  Returns:
    height and width.
  """
  sizes = np.asarray(sizes).reshape(-1, 2)
  pixels, weights = sizes.prod(1), np.asarray(weights) / np.sum(weights)
  ascending = sizes[np.argsort(pixels, kind="stable")]
  smallest = np.full((1, 2), resolution)
  known = np.concatenate([smallest, ascending])
  canvases = np.maximum.accumulate(known)
  fits = (sizes <= canvases[:, None]).all(-1)
  resized = (~fits * weights * pixels).sum(1)
  cost = canvases.prod(1) + _RESIZE_COST * resized
  height, width = canvases[::-1][np.argmin(cost[::-1])]  # of equals the largest
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

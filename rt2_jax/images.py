"""What camera images must be, and how they are resized, in any framework."""

from types import ModuleType
from typing import Any

import numpy as np

from rt2_jax.errors import UserError


def resize_weights(
  start: Any,
  length: Any,
  valid: Any,
  pixels: int,
  resolution: int,
  xp: ModuleType = np,
) -> Any:
  """How much each input pixel counts in each output pixel, along one axis.

  The triangle filter of bilinear interpolation, widened when the image shrinks
  so that no pixel is skipped (antialias). Rows add up to 1.

  Args:
    start: where the crop begins, in pixels.
    length: how long the crop is, in pixels.
    valid: pixels that belong to the image; those after it are padding.
    pixels: length of the axis, padding included.
    resolution: output pixels.
    xp: numpy, or jax.numpy when the first three are traced.

  Returns:
    float32[resolution, pixels].
  """
  step = length / resolution
  output = start + (xp.arange(resolution, dtype=xp.float32) + 0.5) * step
  inputs = xp.arange(pixels, dtype=xp.float32) + 0.5
  distance = xp.abs(output[:, None] - inputs) / xp.maximum(step, 1.0)
  weights = xp.maximum(1.0 - distance, 0.0) * (inputs < valid)
  return (weights / weights.sum(1, keepdims=True)).astype(xp.float32)


def as_frames(image: np.ndarray, batch: int, frames: int) -> np.ndarray:
  """Checks what robots saw, and gives it the axis of frames.

  Args:
    image: uint8[B, F, H, W, 3], or uint8[B, H, W, 3] when F is 1.
    batch: B.
    frames: F.

  Returns:
    uint8[B, F, H, W, 3].

  Raises:
    UserError: images of another shape or type.
  """
  if frames == 1 and image.ndim == 4:
    image = image[:, None]
  shape = (batch, frames, *image.shape[2:4], 3)
  if image.dtype != np.uint8 or image.ndim != 5 or image.shape != shape:
    wanted = "[H, W, 3]" if frames == 1 else f"[{frames}, H, W, 3]"
    raise UserError(
      f"got images {image.dtype}{list(image.shape)} for {batch} instructions, "
      f"expected uint8{wanted} for each of them"
    )
  return image

"""How an image is resized: the same numbers on TPU, in numpy and in PyTorch."""

from types import ModuleType
from typing import Any

import numpy as np


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

"""What travels from the input pipeline to the devices.

Shapes: B examples, F frames per example, H x W pixels, P prefix and S suffix
columns.
"""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
  """Examples of robots and of the web alike.

  The prefix is read in both directions and padded on the left; the suffix is
  the answer, causal, padded on the right. So training is prefill and extend in
  one pass, and logits exist on the suffix window only.

  Attributes:
    image: uint8[B, F, H, W, 3] as decoded, on a canvas that fits all sizes;
      the devices crop and resize.
    image_size: int32[B, F, 2], height and width of each image; 0 x 0 where the
      source lacks the camera.
    prefix: int32[B, P].
    mask_input: bool[B, P], True on real tokens of the prefix.
    suffix: int32[B, S].
    mask_loss: float32[B, S], 1 where the answer counts.
    source: int32[B], which source of the mixture the example is from.
  """

  image: np.ndarray
  image_size: np.ndarray
  prefix: np.ndarray
  mask_input: np.ndarray
  suffix: np.ndarray
  mask_loss: np.ndarray
  source: np.ndarray

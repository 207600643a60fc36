"""Boxes and labels as an answer, in PaliGemma's words."""

from collections.abc import Sequence

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.tokenizer import loc_word


def detection_answer(
  boxes: Sequence[Sequence[float]], labels: Sequence[str]
) -> str:
  """Writes `"<loc0102><loc0000><loc0511><loc1023> cup ; …"`, as PaliGemma does.

  Args:
    boxes: float[N, 4], y_min x_min y_max x_max as parts of the image, 0..1.
    labels: N names.

  Raises:
    UserError: a box outside the image or upside down, or none at all.
  """
  corners = np.asarray(boxes, np.float64).reshape(-1, 4)
  if len(corners) != len(labels) or not len(labels):
    raise UserError(
      f"got {len(corners)} boxes and {len(labels)} labels, expected one label "
      "for each box and at least one box"
    )
  inside = (corners >= 0).all(-1) & (corners <= 1).all(-1)
  good = inside & (corners[:, :2] < corners[:, 2:]).all(-1)
  if not good.all():
    raise UserError(
      f"got box {corners[~good][0].tolist()}, expected y_min x_min y_max "
      "x_max as parts of the image: 0..1 and min < max"
    )
  return " ; ".join(
    "".join(map(loc_word, row)) + f" {label}"
    for row, label in zip(corners, labels, strict=True)
  )

"""Boxes and labels as an answer."""

import pytest

from data.detection import detection_answer


def test_boxes_become_locations(tokenizer):
  answer = detection_answer(
    [[0, 0.25, 0.5, 1], [0.1, 0.1, 0.2, 0.2]], ["red cup", "can"]
  )
  assert answer == (
    "<loc0000><loc0256><loc0512><loc1023> red cup ; "
    "<loc0102><loc0102><loc0204><loc0204> can"
  )
  assert tokenizer.encode(answer)[1] == tokenizer.loc(256)


@pytest.mark.parametrize(
  ("boxes", "labels", "message"),
  [
    ([], [], "got 0 boxes and 0 labels"),
    ([[0, 0, 1, 1]], ["a", "b"], "got 1 boxes and 2 labels, expected one"),
    (
      [[0, 0, 1, 1.5]],
      ["a"],
      r"got box \[0.0, 0.0, 1.0, 1.5\], expected y_min",
    ),
    ([[0.5, 0, 0.2, 1]], ["a"], "and min < max"),
    ([[float("nan"), 0, 0.2, 1]], ["a"], "got box"),
  ],
)
def test_a_box_outside_the_image_is_refused(boxes, labels, message):
  with pytest.raises(ValueError, match=message):
    detection_answer(boxes, labels)

"""Grippers: relative commands that hold, and openings in between."""

import numpy as np
import pytest

from rt2_jax.input_pipeline.grippers import absolute_gripper, binary_gripper


@pytest.mark.parametrize(
  ("command", "opening"),
  [
    ([0, 0, 1, 0, -1, 0], [1, 1, 0, 0, 1, 1]),  # open until it closes
    ([0, -1, 0, 0, 1, 1], [0, 1, 1, 1, 0, 0]),  # closed until it opens
    ([0, 0.05, -0.05], [1, 1, 1]),  # never commanded: open
    ([1], [0]),
  ],
)
def test_relative_gripper_commands_hold(command, opening):
  out = absolute_gripper(np.array(command, np.float32)[:, None])
  np.testing.assert_array_equal(out[:, 0], opening)


@pytest.mark.parametrize(
  ("opening", "binary"),
  [
    ([1, 0.7, 0.3, 0], [1, 0, 0, 0]),  # closing: on its way to 0
    ([0, 0.2, 0.6, 1], [0, 1, 1, 1]),
    ([0.5, 1, 0.8], [1, 1, 1]),  # nothing settles after it: the nearer state
    ([0.4], [0]),
  ],
)
def test_a_moving_gripper_takes_the_next_settled_state(opening, binary):
  out = binary_gripper(np.array(opening, np.float32)[:, None])
  np.testing.assert_array_equal(out[:, 0], binary)

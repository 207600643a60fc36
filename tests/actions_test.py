"""Named dimensions: sizes, bounds, the action after an episode's end."""

import numpy as np
import pytest

from rt2_jax.action_spaces import LANGUAGE_TABLE, RT1, RT2


def test_sizes_of_the_three_spaces():
  assert [len(s) for s in (RT2, RT1, LANGUAGE_TABLE)] == [8, 11, 2]
  assert RT2.names == (
    "terminate", "dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper",
  )  # fmt: skip


def test_after_its_end_a_robot_rests():
  last = np.float32([0.0, 0.3, -0.2, 0.1, 0.5, 0.0, 0.1, 0.7])
  np.testing.assert_array_equal(
    RT2.after_end(last), np.float32([1, 0, 0, 0, 0, 0, 0, 0.7])
  )
  np.testing.assert_array_equal(LANGUAGE_TABLE.after_end(last[:2]), [0, 0])


def test_an_unknown_dimension_is_named():
  with pytest.raises(ValueError, match="did you mean 'gripper'"):
    RT2.with_bounds({"griper": (0, 1)})


@pytest.mark.parametrize(
  ("bounds", "message"),
  [
    ({"dx": (0.1, 0.1)}, "dimension 'dx'.* expected low < high"),
    ({"terminate": (0, 1)}, "'terminate', which is discrete"),
    ({"dx": (0.1,)}, r"\(0\.1,\) for 'dx', expected two numbers"),
    ({"dx": 0.1}, "0.1 for 'dx', expected two numbers"),
  ],
)
def test_bounds_that_make_no_bins_are_refused(bounds, message):
  with pytest.raises(ValueError, match=message):
    RT2.with_bounds(bounds)

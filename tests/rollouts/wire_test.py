"""Messages arrive as they were sent."""

import numpy as np
import pytest

from rt2_jax.rollouts import wire


def test_values_and_arrays_arrive():
  message = {
    "images": {
      "primary": np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3),
      "wrist": np.zeros((1, 0, 2, 3), np.uint8),
    },
    "state": np.array([0.1, -2.5], np.float32),
    "outcome": [True, None, "très bien", 1.5, {"n": [1, 2]}],
  }
  again = wire.loads(wire.dumps(message))
  assert again["outcome"] == message["outcome"]
  for got, sent in (
    (again["images"]["primary"], message["images"]["primary"]),
    (again["images"]["wrist"], message["images"]["wrist"]),
    (again["state"], message["state"]),
  ):
    assert got.dtype == sent.dtype and got.flags.writeable
    np.testing.assert_array_equal(got, sent)


def test_views_and_scalars_of_numpy():
  image = np.arange(12).reshape(3, 4)
  again = wire.loads(wire.dumps([image[::-1, ::2], np.float32(0.5), (1, 2)]))
  np.testing.assert_array_equal(again[0], image[::-1, ::2])
  assert again[1:] == [0.5, [1, 2]]


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_what_is_no_json_is_refused(value):
  with pytest.raises((TypeError, ValueError)):
    wire.dumps({"details": value})

"""What a policy takes from robots, whichever framework computes it."""

import numpy as np
import pytest

from rt2_jax.errors import UserError
from tests.serving import served


def test_one_observation_is_not_taken_for_many(tokenizer):
  policy, seen = served.MarkedPolicy(tokenizer), served.observation(3)
  with pytest.raises(UserError, match=r"one Observation.*\[observation\]"):
    policy.act(seen)
  expected = served.marked(policy, served.image(3))
  np.testing.assert_array_equal(policy.act([seen]), [expected])

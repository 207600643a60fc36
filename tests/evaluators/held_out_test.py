"""Where held-out data lie; measuring on them is `action_accuracy_test`'s."""

import pytest

from rt2_jax.errors import UserError
from rt2_jax.evaluators.held_out import moved


def test_sources_that_moved():
  robots, webs = {"bridge": {"path": "a", "weight": 1}}, {"vqa": {"path": "b"}}
  found = moved((robots, webs), ["bridge=c"])
  assert found == [{"bridge": {"path": "c", "weight": 1}}, webs]
  with pytest.raises(UserError, match="did you mean 'bridge'"):
    moved((robots, webs), ["brige=c"])
  with pytest.raises(UserError, match="got 'c' for --paths, expected NAME="):
    moved((robots, webs), ["c"])

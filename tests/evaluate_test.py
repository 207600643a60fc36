"""The picture of launch/evaluate.py; `journey_test` runs the program."""

import io

import matplotlib.image
import numpy as np
import pytest

from launch import evaluate
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import RareTokens
from rt2_jax.actions import NUM_BINS, ActionSpace, Dimension
from rt2_jax.evaluators.action_accuracy import ActionAccuracy


@pytest.mark.parametrize("count", [1, 2])
def test_each_dimension_has_a_panel(tmp_path, count):
  space = ActionSpace(
    "lift", "base", tuple(Dimension(f"d{i}", "m") for i in range(count))
  )
  tokenizer = ActionTokenizer(space, RareTokens(tuple(range(NUM_BINS))))
  actions = np.zeros((3, 1, count), np.float32)
  result = ActionAccuracy(tokenizer, actions, actions, None)
  evaluate.draw(result, tmp_path / "lift.png")
  content = (tmp_path / "lift.png").read_bytes()
  height = matplotlib.image.imread(io.BytesIO(content)).shape[0]
  assert height == 160 * count

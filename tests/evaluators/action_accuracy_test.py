"""The table of figures, on actions made by hand."""

import numpy as np
import pytest

from rt2_jax.action_tokens import RareTokens
from rt2_jax.actions import RT2, ActionTokenizer
from rt2_jax.evaluators.action_accuracy import ActionAccuracy

TOKENIZER = ActionTokenizer(RT2, RareTokens(tuple(range(256))))
BIN = 2 / 255  # metres, RT-1's bounds, centred


@pytest.fixture
def result():
  recorded = TOKENIZER.to_action(np.full((4, 8), [1, *[100] * 7]))
  decoded = recorded.copy()
  decoded[0, 1] += BIN  # near
  decoded[1, 1] += 2 * BIN  # near
  decoded[2, 2] += 3 * BIN  # not near
  decoded[3, 0] = 1.0  # terminates: near by bins
  forced = np.ones((4, 8), bool)
  forced[0, 1] = forced[1, 1] = False
  return ActionAccuracy(TOKENIZER, recorded, decoded, forced)


def test_figures(result):
  metrics = result.metrics()
  assert metrics["forced_accuracy/dx"] == 0.5
  assert metrics["forced_accuracy/mean"] == 30 / 32
  assert metrics["decoded_accuracy/dx"] == 0.5
  assert metrics["within_2_bins/dx"] == 1.0
  assert metrics["within_2_bins/dy"] == 0.75
  np.testing.assert_allclose(metrics["l1/dx"], 3 * BIN / 4, rtol=1e-4)
  np.testing.assert_allclose(metrics["l1/dy"], 3 * BIN / 4, rtol=1e-4)
  assert metrics["l1/terminate"] == 0.25


def test_a_wrong_class_is_never_near(result):
  """Terminating and moving on are one bin apart, and opposites."""
  assert result.near == 0.5
  assert result.metrics()["within_2_bins/terminate"] == 0.75


def test_the_table_shows_units(result):
  text = str(result)
  assert "dx" in text and " m" in text and " rad" in text
  assert "0.500 of 4 steps" in text

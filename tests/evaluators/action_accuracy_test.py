"""The table of figures, on actions made by hand."""

import dataclasses
import json

import numpy as np
import pytest

from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import RareTokens
from rt2_jax.errors import UserError
from rt2_jax.evaluators.action_accuracy import (
  ActionAccuracy,
  evaluate,
  metric_names,
)
from rt2_jax.observation import from_images
from rt2_jax.prompt import ROBOT_TEMPLATE, Prompt

TOKENIZER = ActionTokenizer(RT2, RareTokens(tuple(range(256))))
BIN = 2 / 255  # metres, RT-1's bounds, centred


@pytest.fixture
def result():
  recorded = TOKENIZER.to_action(np.full((4, 1, 8), [1, *[100] * 7]))
  decoded = recorded.copy()
  decoded[0, 0, 1] += BIN  # near
  decoded[1, 0, 1] += 2 * BIN  # near
  decoded[2, 0, 2] += 3 * BIN  # not near
  decoded[3, 0, 0] = 1.0  # terminates: near by bins
  forced = np.ones((4, 1, 8), bool)
  forced[0, 0, 1] = forced[1, 0, 1] = False
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


def test_long_names_keep_the_columns_in_line():
  long = [
    dataclasses.replace(d, name="left_" + d.name * 5) for d in RT2.dimensions
  ]
  tokenizer = dataclasses.replace(
    TOKENIZER, space=dataclasses.replace(RT2, dimensions=tuple(long))
  )
  actions = tokenizer.to_action(np.full((1, 1, 8), [1, *[100] * 7]))
  text = str(ActionAccuracy(tokenizer, actions, actions, None))
  rows = [line for line in text.splitlines() if "0.00000" in line]
  assert len(rows) == 8 and len({row.index("0.00000") for row in rows}) == 1


class Knows:
  """A policy that predicts what is recorded, but for one column."""

  def __init__(self, tokenizer, route, wrong, plan_length=0):
    self.action_tokenizer = ActionTokenizer(RT2, tokenizer.action_route(route))
    length = self.action_tokenizer.answer_length + 1
    self.prompt = Prompt(tokenizer, 40, length, ROBOT_TEMPLATE, plan_length)
    self.wrong = wrong

  def prompts(self, seen):
    return None

  def token_ids(self, seen):
    return self.action_tokenizer.encode(STILL)[None].repeat(len(seen.image), 0)

  def forced_ids(self, image, image_size, prompts, suffix):
    predicted = suffix.copy()
    predicted[0, self.wrong] += 1
    return predicted


STILL = TOKENIZER.to_action(np.array([[1, *[100] * 7]]))
# "1 5 100 100 …": the places of its tokens.
RECORDED = TOKENIZER.to_action(np.array([[[1, 5, *[100] * 6]]] * 2))


@pytest.mark.parametrize(
  ("route", "wrong", "missed"),
  [
    ("rare", 1, ["dx"]),
    ("rare", 8, []),  # eos, which no robot decodes
    ("integers", 0, ["terminate"]),
    ("integers", 2, ["dx"]),
    ("integers", 3, ["dx"]),  # the space that ends it: it would go on
    ("integers", 4, ["dy"]),
    ("integers", 27, ["gripper"]),  # eos, which ends it
    ("integers", 28, []),  # padding
  ],
)
def test_a_number_is_right_when_all_its_tokens_are(
  tokenizer, route, wrong, missed
):
  images = np.zeros((2, 1, 8, 8, 3), np.uint8)
  steps = [(from_images(images, ["go"] * 2), RECORDED)]
  policy = Knows(tokenizer, route, wrong)
  result = evaluate(policy, steps)
  metrics = result.metrics()
  assert metric_names(policy) == list(metrics)
  for name in RT2.names:
    expected = 0.5 if name in missed else 1.0
    assert metrics[f"forced_accuracy/{name}"] == expected, name
  assert metrics["forced_accuracy/mean"] == 1 - len(missed) / 16
  json.dumps(metrics, allow_nan=False)
  assert "nan" not in str(result) and "token accuracy" in str(result)


def test_no_steps_have_no_accuracy(tokenizer):
  with pytest.raises(UserError, match="no recorded steps, expected at least"):
    evaluate(Knows(tokenizer, "rare", 0), [])

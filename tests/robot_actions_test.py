"""Limits hold whatever a policy says; chunks are averaged where it is safe."""

import dataclasses
import math

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from rt2_jax.action_spaces import LANGUAGE_TABLE, RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.observation import ObservationSpec
from rt2_jax.robot_actions import Chunks, Limits
from rt2_jax.serving.description import describe

BOX = (np.asarray([0.2, -0.3, 0.0]), np.asarray([0.8, 0.3, 0.5]))
PERIOD = 0.2


def metadata(tokenizer, space=RT2):
  actions = ActionTokenizer(space, tokenizer.action_route("rare"), horizon=4)
  sizes = {"primary": (24, 32)}
  return describe(actions, ObservationSpec(), sizes, 5.0, {})


@hypothesis.given(
  hypothesis.extra.numpy.arrays(
    np.float32, 8, elements=st.floats(-9, 9, width=16)
  ),
  hypothesis.extra.numpy.arrays(np.float64, 3, elements=st.floats(-0.5, 1)),
)
def test_no_action_breaks_a_limit(tokenizer, action, position):
  limits = Limits.of(
    metadata(tokenizer), max_speed=0.5, max_turn=1.0, workspace=BOX
  )
  limited = limits.apply(action, position, PERIOD)
  assert (limited >= limits.low - 1e-6).all()
  assert (limited <= limits.high + 1e-6).all()
  assert np.linalg.norm(limited[1:4]) <= 0.5 * PERIOD + 1e-6
  assert np.linalg.norm(limited[4:7]) <= 1.0 * PERIOD + 1e-6
  # Inside it stays inside, and outside it goes no farther away.
  hand = position + limited[1:4]
  before, after = (np.abs(x - np.clip(x, *BOX)) for x in (position, hand))
  assert (after <= before + 1e-6).all()


def test_an_allowed_action_is_not_changed(tokenizer):
  limits = Limits.of(metadata(tokenizer))
  action = np.float32([0, 0.3, -0.2, 0.1, 1.0, 0, 0, 0.5])
  np.testing.assert_array_equal(limits.apply(action, None, PERIOD), action)
  assert limits.max_speed == math.inf


def test_a_fast_motion_keeps_its_direction(tokenizer):
  limits = Limits.of(metadata(tokenizer), max_speed=0.25)
  action = np.float32([0, 0.6, -0.8, 0, 0.1, 0, 0, 1])
  limited = limits.apply(action, None, PERIOD)
  np.testing.assert_allclose(limited[1:4], [0.03, -0.04, 0], atol=1e-7)
  np.testing.assert_array_equal(limited[4:], action[4:])


def test_a_hand_outside_the_workspace_comes_back(tokenizer):
  limits = Limits.of(metadata(tokenizer), workspace=BOX)
  rest = np.zeros(8, np.float32)
  limited = limits.apply(rest, np.asarray([0.9, 0, 0.1]), PERIOD)
  np.testing.assert_allclose(limited[1:4], [-0.1, 0, 0], atol=1e-6)


def test_a_workspace_needs_a_position_and_x_y_z(tokenizer):
  limits = Limits.of(metadata(tokenizer), workspace=BOX)
  with pytest.raises(UserError, match="without a position"):
    limits.apply(np.zeros(8), None, PERIOD)
  with pytest.raises(UserError, match="dz"):
    Limits.of(metadata(tokenizer, LANGUAGE_TABLE), workspace=BOX)


@pytest.mark.parametrize(
  "position", [[0.5, math.nan, 0.1], [0.5, 0, 0.1, 1, 0, 0, 0], [math.inf] * 3]
)
def test_a_position_that_is_none_moves_nothing(tokenizer, position):
  limits = Limits.of(metadata(tokenizer), workspace=BOX)
  with pytest.raises(UserError, match="position.*3 finite numbers: x, y, z"):
    limits.apply(np.zeros(8), position, PERIOD)


@pytest.mark.parametrize("action", [np.zeros(7), np.full(8, math.nan)])
def test_an_action_of_other_numbers_moves_nothing(tokenizer, action):
  with pytest.raises(UserError, match="action.*8 finite numbers: terminate"):
    Limits.of(metadata(tokenizer)).apply(action, None, PERIOD)


@pytest.mark.parametrize("limit", ["max_speed", "max_turn"])
def test_a_limit_that_would_hold_nothing_back_is_named(tokenizer, limit):
  joints = dataclasses.replace(
    RT2,
    dimensions=tuple(
      dataclasses.replace(d, name=f"joint_{i}")
      for i, d in enumerate(RT2.dimensions)
    ),
  )
  said = metadata(tokenizer, joints)
  assert Limits.of(said, **{limit: math.inf})
  with pytest.raises(UserError, match=f"{limit} .*joint_1"):
    Limits.of(said, **{limit: 0.1})


def test_a_limit_in_metres_is_not_of_other_units(tokenizer):
  said = metadata(tokenizer)
  said["action_units"] = ["cm" if u == "m" else u for u in said["action_units"]]
  with pytest.raises(UserError, match=r"dx \(cm\).* in m "):
    Limits.of(said, max_speed=0.1)
  assert Limits.of(said, max_turn=0.1)


def chunk(start: float):
  """Four actions; terminate and the gripper differ from chunk to chunk too."""
  motion = start + np.arange(4, dtype=np.float32) / 10
  return np.stack([np.full(8, m, np.float32) for m in motion])


def test_the_newest_chunk_says_what_to_do(tokenizer):
  chunks = Chunks(metadata(tokenizer), decay=None)
  assert chunks.action(0) is None
  chunks.add(0, chunk(0.0))
  chunks.add(2, chunk(1.0))
  found = [chunks.action(step)[1] for step in (2, 3, 4, 5)]
  np.testing.assert_allclose(found, [1.0, 1.1, 1.2, 1.3], rtol=1e-6)
  assert chunks.action(6) is None


def test_overlapping_chunks_are_averaged_but_for_gripper_and_terminate(
  tokenizer,
):
  chunks = Chunks(metadata(tokenizer), decay=0.5)
  for start, first in ((0, 0.0), (1, 1.0), (2, 4.0)):
    chunks.add(start, chunk(first))
  weights = np.exp(-0.5 * np.asarray([2, 1, 0]))
  expected = weights @ [0.2, 1.1, 4.0] / weights.sum()
  action = chunks.action(2)
  np.testing.assert_allclose(action[1:7], [expected] * 6, rtol=1e-6)
  np.testing.assert_array_equal(action[[0, 7]], [4.0, 4.0])


def test_classes_are_never_averaged(tokenizer):
  chunks = Chunks(metadata(tokenizer, LANGUAGE_TABLE), decay=0.0)
  chunks.add(0, np.float32([[-0.1, 0.1]] * 2))
  chunks.add(1, np.float32([[0.1, -0.1]] * 2))
  np.testing.assert_allclose(chunks.action(1), [0.1, -0.1])

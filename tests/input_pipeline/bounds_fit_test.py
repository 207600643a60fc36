"""Bounds that clip, or leave most bins unused, are told with figures."""

import logging

import numpy as np
import pytest

from rt2_jax.action_spaces import LANGUAGE_TABLE, RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.input_pipeline import bounds_fit
from rt2_jax.input_pipeline.examples import open_robot
from rt2_jax.observation import ONE_CAMERA
from rt2_jax.prompt import Prompt
from tests import tiny_datasets

ACTION = np.random.default_rng(0).normal(size=(5000, 8))


def moves(scale: float) -> np.ndarray:
  """Displacements of that standard deviation, and a gripper that stays."""
  action = scale * ACTION
  action[:, [0, 7]] = [0, 1]
  return action


def fit(space, action):
  return {fit.name: fit for fit in bounds_fit.measure(space, action)}


def test_percentiles_as_bounds_fit():
  action = moves(0.03)
  spans = np.quantile(action, [0.01, 0.99], axis=0).T
  low, high = spans[1]
  space = RT2.with_bounds(dict(zip(RT2.names[1:7], spans[1:7], strict=True)))
  found = fit(space, action)["dx"]
  assert found.fits and found.bins == 256 and found.clipped <= 0.01
  assert found.span == pytest.approx((low, high))
  assert not bounds_fit.misfits(space, action)


def test_centimetres_in_bounds_of_metres_are_told():
  found = fit(RT2, moves(0.01))["dy"]
  # ±2.3 standard deviations of 1 cm, in bins of 7.8 mm.
  assert 6 <= found.bins <= 8 and found.clipped == 0 and not found.fits
  told = bounds_fit.misfits(RT2, moves(0.01))
  assert f"dy 0.0% clipped, 98% of the rest in {found.bins} of 256" in told
  assert "gripper" not in told and "terminate" not in told


def test_millimetres_are_told_to_be_clipped():
  found = fit(RT2, moves(10.0))["dx"]
  assert 0.4 < found.clipped < 0.5 and not found.fits


def test_what_stands_still_and_what_is_discrete_has_no_better_bounds():
  assert not bounds_fit.misfits(RT2, moves(1e-5))
  assert not bounds_fit.measure(LANGUAGE_TABLE, ACTION[:, :2])


def test_one_stray_action_of_few_is_no_misfit():
  action = 0.4 * moves(1.0).clip(-2, 2)[:40]
  action[3, 1] = 5.0
  assert not bounds_fit.misfits(RT2, action)


def test_opening_a_source_warns(tmp_path, tokenizer, caplog):
  config = tiny_datasets.bridge_source(tmp_path)  # motions of at most 2 cm
  actions = ActionTokenizer(config.space, tokenizer.action_route("rare"))
  prompt = Prompt(tokenizer, 24, 9)
  with caplog.at_level(logging.WARNING, "rt2_jax"):
    open_robot(config, "train", actions, prompt, ONE_CAMERA, "", 0)
  (record,) = caplog.records
  assert "dx 0.0% clipped" in record.getMessage()
  assert str(tmp_path) in record.getMessage()

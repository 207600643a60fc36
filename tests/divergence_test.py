"""Bad steps: which ones are, and how many may be left out."""

import numpy as np
import pytest

from rt2_jax.divergence import BadSteps, DivergenceConfig


def metrics(loss=1.0, gradient=1.0, **changed):
  return {
    "loss": np.float64([loss, loss]),
    "examples": np.float64([1, 1]),
    "gradient_norm": np.float64(gradient),
    "update_norm": np.float64(1),
    "parameter_norm": np.float64(1),
  } | changed


@pytest.mark.parametrize(
  ("config", "changed", "part"),
  [
    ({}, {"loss": np.nan}, "finite"),
    ({}, {"gradient": np.inf}, "finite"),
    ({"gradient_norm": 3.0}, {"gradient": 3.1}, "gradient_norm of at most 3"),
    ({"loss_spike": 2.0}, {"loss": 2.1}, "loss of at most 2"),
    ({"loss_spike": 2.0}, {"loss": 1.9}, ""),
    ({}, {"loss": 1e6, "gradient": 1e6}, ""),
  ],
)
def test_bounds(config, changed, part):
  steps = BadSteps(DivergenceConfig(**config), {})
  assert not steps.problem(metrics())
  found = steps.problem(metrics(**changed))
  assert part in found and bool(part) == bool(found)


def test_a_spike_is_measured_against_a_mean_that_survives_a_restart():
  config = DivergenceConfig(loss_spike=1.5)
  steps = BadSteps(config, {})
  for loss in np.linspace(4, 1, 100):
    assert not steps.problem(metrics(loss))
  again = BadSteps(config, steps.kept)
  for each in (steps, again):
    assert not each.problem(metrics(1.5)) and each.problem(metrics(3.0))


def test_so_many_steps_may_be_left_out_and_no_more():
  steps = BadSteps(DivergenceConfig(max_skipped=2), {})
  assert not steps.may_skip(metrics())  # bad, but it changed the state
  assert steps.may_skip(metrics(skipped=1))
  steps = BadSteps(DivergenceConfig(max_skipped=2), steps.kept)
  assert steps.may_skip(metrics(skipped=1))
  assert not steps.may_skip(metrics(skipped=1))

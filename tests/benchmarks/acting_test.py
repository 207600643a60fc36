"""The timed parts of a call are those that the policy computes."""

import numpy as np
import pytest

from rt2_jax.benchmarks import acting, frames, meters
from rt2_jax.policy import Policy
from tests.serving import served


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory) -> Policy:
  run = served.save_run(tmp_path_factory.mktemp("acting"), tokenizer)
  return Policy.from_checkpoint(run)


def test_the_parts_decode_the_policys_tokens(policy):
  shown = frames.noise(policy.observation)
  seen = [one.decode() for one in frames.robots_at(shown, 2, 0)]
  expected = policy.act(seen)
  watch = acting.Stopwatch()
  for drafts in ([None, None], list(expected[::-1])):
    ids = acting.Parts(policy).ids(seen, drafts, watch)
    found = policy.action_tokenizer.decode(ids)
    np.testing.assert_array_equal(found, expected)


def test_a_policy_in_int8_acts_alike(policy):
  subject = acting.Subject(policy, frames.noise(policy.observation), None)
  with acting.OTHERS["int8"](subject) as other:
    row = acting.compare(subject, other, robots=2, repeats=4)
  # Random weights: near ties change.
  assert 0.0 <= row["same_chunks"] < 1.0 and row["ms"]["call"]["p50"] > 0
  own = acting.compare(subject, policy, robots=2, repeats=4)
  assert own["same_chunks"] == own["within_2_bins"] == 1.0


def test_each_robot_goes_on_by_a_step_at_its_own_place(policy):
  shown = frames.noise(policy.observation)
  files = [one.files["primary"] for one in shown]
  assert len(set(map(tuple, files))) == len(files) == 8
  for step in range(9):
    rows = frames.robots_at(shown, 3, step)
    places = [files.index(row.files["primary"]) for row in rows]
    assert places == [(start + step) % 8 for start in (0, 2, 4)]


def test_percentiles_leave_the_warm_up_out():
  watch = acting.Stopwatch()
  for _ in range(5):
    assert watch.time("part", lambda: 7) == 7
  assert list(watch.percentiles()) == ["part"]
  assert meters.percentiles([1.0, 2.0, 3.0])["p50"] == 2.0
  assert meters.percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99}

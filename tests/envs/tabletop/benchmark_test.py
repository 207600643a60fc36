"""Rollouts on the tabletop: floor, ceiling and chance, the same for all."""

import numpy as np
import pytest

from rt2_jax.envs.tabletop import environment, trials
from rt2_jax.envs.tabletop.baselines import guessed, null, random
from rt2_jax.envs.tabletop.benchmark import Tabletop
from rt2_jax.envs.tabletop.environment import (
  FAILED,
  NOTHING,
  SUCCESS,
  WRONG_OBJECT,
  WRONG_PLACE,
)
from rt2_jax.envs.tabletop.suites import MEANS, SUITES
from rt2_jax.errors import UserError
from rt2_jax.rollouts import results, runner
from rt2_jax.rollouts.trial import choose_suites


def benchmark(max_steps=60, **options):
  return Tabletop(image_size=32, max_steps=max_steps, **options)


def draw(count, *names):
  known = benchmark()
  suites = choose_suites(known.suites, names or ["all"])
  return known.trials(suites, count, 0)


def by_trial(rollouts):
  return {
    (r.trial.suite, r.trial.number): (r.reason, r.steps, r.details["engaged"])
    for r in rollouts
  }


def outcomes(rollouts):
  return results.summarize(list(rollouts), benchmark())["outcomes"]


def test_the_expert_is_the_ceiling():
  """`launch/rollout.py --policy=oracle` measures this on more trials."""
  rollouts = list(runner.run(None, draw(2), benchmark(), 8, 2))
  assert len(by_trial(rollouts)) == 2 * len(SUITES)
  assert sum(r.success for r in rollouts) >= 0.97 * len(rollouts)
  assert not any(r.capped or r.error for r in rollouts)


def test_rest_is_the_floor_and_meets_the_step_cap():
  rollouts = list(runner.run(null, draw(1), benchmark(max_steps=5), 8, 1))
  summary = results.summarize(rollouts, benchmark())
  assert summary["successes"] == 0 and summary["rate"] == 0.0
  assert summary["capped"] == summary["n"] == len(SUITES)
  assert summary["mean_steps"] == 5.0
  assert summary["outcomes"][NOTHING] == len(SUITES)


def test_a_policy_reads_the_hands_state_as_demonstrations_hold_it():
  states = []

  def act(observations):
    states.append(observations[0].state)
    return np.float32([[[0, 0.01, -0.02, 0, 0, 0, 0.1, 0]]])

  known = benchmark(max_steps=2)
  (rollout,) = runner.run(act, draw(1, "seen")[:1], known, 1, 1)
  assert rollout.steps == len(states) == 2
  start, end = states
  assert start.shape == (len(known.spec.state),) and start[6] == 1
  moved = [0.01, -0.02, 0, 0, 0, 0.1, -1]
  np.testing.assert_allclose(end - start, moved, atol=1e-6)


def test_one_who_guesses_moves_well_and_often_takes_the_wrong_thing():
  drawn = draw(24, "reasoning_use")
  rollouts = runner.run(None, drawn, benchmark(), 8, 1, expert=guessed)
  counts = outcomes(rollouts)
  assert 4 <= counts[SUCCESS] <= 16
  assert counts[WRONG_OBJECT] >= 6
  assert counts[NOTHING] <= 2 and counts[FAILED] <= 2


def test_a_guess_about_the_place_is_counted_apart():
  def other_mat(trial):
    task, others = trials.task(trial), trial.options["distractors"]
    other = task.__class__(task.family, task.target, others[0])
    return trials.with_task(trial, other)

  drawn = draw(30, "symbols_numbers")
  puts = [t for t in drawn if t.tags["family"] == "place_on"][:6]
  rollouts = runner.run(None, puts, benchmark(), 6, 1, expert=other_mat)
  assert {r.reason for r in rollouts} == {WRONG_PLACE}


def test_every_policy_meets_the_same_trials():
  """However many environments there are, and in whatever order."""
  drawn = draw(2, "seen", "people")
  first = {}

  def run(policy, name, num_envs, processes):
    def act(observations):
      for seen in observations:
        image = seen.images["primary"][-1]
        first.setdefault(name, {}).setdefault(seen.instruction, image)
      return policy(observations)

    of = benchmark(max_steps=4)
    return by_trial(runner.run(act, drawn, of, num_envs, processes))

  by_chance = run(random, "random", 3, 2)
  assert run(random, "again", 5, 1) == by_chance
  assert run(null, "null", 4, 2) != by_chance
  assert set(first["random"]) == set(first["null"])
  for text, image in first["null"].items():
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, first["random"][text])


def test_an_action_that_is_no_number_breaks_its_trial_off():
  drawn = draw(2, "seen")

  def act(observations):
    actions = null(observations)
    asked = [seen.instruction == drawn[0].instruction for seen in observations]
    actions[asked] = np.nan
    return actions

  broken, fine = sorted(
    runner.run(act, drawn, benchmark(max_steps=4), 2, 1),
    key=lambda r: r.trial.number,
  )
  assert "Error: got action [nan" in broken.error
  assert fine.reason == NOTHING


def test_what_the_page_says_of_a_trial():
  known = benchmark()
  for trial in draw(8, "seen", "symbols_numbers"):
    task = trials.task(trial)
    assert known.goal(trial).startswith(task.target)
    assert (task.reference or task.side) in known.goal(trial)
    assert known.plan_is_right(trial, f"{task.target} <loc0416><loc0608>")
    assert known.plan_is_right(trial, task.target)
    assert not known.plan_is_right(trial, f"green {task.target} <loc0416>")
    assert trial.tags == {"family": task.family}


def test_suites_are_grouped_as_in_the_paper():
  known = benchmark()
  topics = dict.fromkeys(info.topic for info in known.suites.values())
  assert list(topics) == [
    *("seen tasks", "unseen objects", "unseen backgrounds"),
    *("unseen environments", "symbol understanding", "reasoning", "people"),
  ]
  groups = {info.group for info in known.suites.values()}
  assert set().union(*MEANS.values()) <= groups


def test_trials_are_those_of_earlier_versions():
  """Hashed at commit bdd0882: seeds, instructions, scenes and pictures."""
  drawn = Tabletop().trials(list(SUITES), 20, 0)
  assert Tabletop().fingerprint(drawn) == "4a902d4442fb9e63"


def test_what_cannot_be_drawn():
  picks = benchmark(families=["pick"]).trials(["seen"], 4, 0)
  assert {trial.tags["family"] for trial in picks} == {"pick"}
  with pytest.raises(UserError, match="expected one of suite 'people_names'"):
    benchmark(families=["push"]).trials(["people_names"], 1, 0)
  with pytest.raises(UserError, match="'aple' for object"):
    benchmark(concepts=["aple"])
  with pytest.raises(UserError, match="got pictures 'no.zip'"):
    Tabletop("no.zip")
  assert Tabletop.reasons[0] == environment.SUCCESS

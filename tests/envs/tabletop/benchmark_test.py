"""Rollouts: floor and ceiling, the same episodes for all, faults reported."""

import functools
import re

import numpy as np
import pytest

from rt2_jax.envs.tabletop import environment, pictures, suites
from rt2_jax.envs.tabletop.environment import TabletopConfig
from rt2_jax.envs.tabletop.suites import SUITES
from rt2_jax.rollouts import runner, simulation, trials
from rt2_jax.rollouts.runner import BROKEN_OFF
from tests.envs.tabletop.rendering import PICTURES
from tests.rollouts import faulty_envs


def maker(image_size=32, max_steps=60):
  config = TabletopConfig(image_size=image_size, max_steps=max_steps)
  return functools.partial(simulation.make_tabletop, str(PICTURES), config)


def draw(count, *names):
  known = pictures.load(PICTURES)
  return trials.draw(suites.choose(names or ["all"]), known, count, 0)


def by_episode(rollouts):
  return {
    (r.episode.suite, r.episode.number): (r.outcome, r.steps, r.engaged)
    for r in rollouts
  }


def test_the_expert_is_the_ceiling():
  """`launch/rollout.py --policy=oracle` measures this on more episodes."""
  episodes = draw(2)
  rollouts = list(runner.run(None, episodes, maker(), 8, 2))
  assert len(by_episode(rollouts)) == 2 * len(SUITES)
  successes = sum(r.outcome == environment.SUCCESS for r in rollouts)
  assert successes >= 0.97 * len(rollouts)
  assert not any(r.capped or r.error for r in rollouts)


def test_rest_is_the_floor_and_meets_the_step_cap():
  episodes = draw(1)
  rollouts = list(runner.run(runner.null, episodes, maker(max_steps=5), 8, 1))
  summary = runner.summarize(rollouts)
  assert summary["successes"] == 0 and summary["rate"] == 0.0
  assert summary["capped"] == summary["n"] == len(SUITES)
  assert summary["mean_steps"] == 5.0
  assert summary["outcomes"][environment.NOTHING] == len(SUITES)


def test_one_who_guesses_moves_well_and_often_takes_the_wrong_thing():
  episodes = draw(24, "reasoning_use")
  rollouts = runner.run(None, episodes, maker(), 8, 1, expert=runner.guessed)
  outcomes = runner.summarize(list(rollouts))["outcomes"]
  assert 4 <= outcomes[environment.SUCCESS] <= 16
  assert outcomes[environment.WRONG_OBJECT] >= 6
  assert outcomes[environment.NOTHING] <= 2


def test_a_guess_about_the_place_is_counted_apart():
  episodes = draw(30, "symbols_numbers")

  def other_mat(episode):
    task, others = episode.options.task, episode.options.distractors
    return task.__class__(task.family, task.target, others[0])

  puts = [e for e in episodes if e.options.task.family == "place_on"][:6]
  rollouts = runner.run(None, puts, maker(), 6, 1, expert=other_mat)
  assert {r.outcome for r in rollouts} == {environment.WRONG_PLACE}


def test_every_policy_meets_the_same_episodes():
  """However many environments there are, and in whatever order."""
  episodes = draw(2, "seen", "people")
  first = {}

  def watched(policy, called):
    def act(images, instructions):
      for image, text in zip(images, instructions, strict=True):
        first.setdefault(called, {}).setdefault(text, image)
      return policy(images, instructions)

    return act

  def run(policy, name, num_envs, processes):
    make = maker(max_steps=4)
    act = watched(policy, name)
    return by_episode(runner.run(act, episodes, make, num_envs, processes))

  random = run(runner.random, "random", 3, 2)
  assert run(runner.random, "again", 5, 1) == random
  assert run(runner.null, "null", 4, 2) != random
  assert set(first["random"]) == set(first["null"])
  for text, image in first["null"].items():
    np.testing.assert_array_equal(image, first["random"][text])


def test_the_policy_is_always_called_with_as_many_rows():
  seen = []

  def policy(images, instructions):
    seen.append((images.shape, images.dtype, len(instructions)))
    return runner.random(images, instructions)

  rollouts = list(runner.run(policy, draw(5, "seen"), maker(max_steps=9), 4, 1))
  assert len(rollouts) == 5
  assert set(seen) == {((4, 32, 32, 3), np.dtype(np.uint8), 4)}


def test_the_first_plan_of_an_episode_is_kept():
  first = {}

  def policy(images, instructions):
    plans = [
      f"{text}, {np.mean(image)}"
      for image, text in zip(images, instructions, strict=True)
    ]
    for text, plan in zip(instructions, plans, strict=True):
      first.setdefault(text, plan)
    return plans, runner.random(images, instructions)[1]

  rollouts = list(runner.run(policy, draw(5, "seen"), maker(max_steps=4), 3, 1))
  assert len({r.plan for r in rollouts}) == 5
  for r in rollouts:
    assert r.plan == first[r.episode.options.instruction]
    assert r.to_dict()["plan"] == r.plan


def test_films_show_every_step():
  episodes = draw(3, "seen")
  rollouts = list(runner.run(None, episodes, maker(), 2, 1, num_filmed=2))
  for r in rollouts:
    shown = r.steps + 1 if r.episode.number < 2 else 0
    assert len(r.images) == shown


# Wilson's interval: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
@pytest.mark.parametrize(
  ("successes", "n", "low", "high"),
  [
    (0, 20, 0.0, 0.16113),
    (8, 10, 0.49016, 0.94332),
    (50, 100, 0.40383, 0.59617),
    (20, 20, 0.83887, 1.0),
  ],
)
def test_wilson_intervals(successes, n, low, high):
  interval = runner.wilson(successes, n)
  assert interval == pytest.approx((low, high), abs=1e-5)
  z, p = 1.959964, successes / n
  middle = p + z**2 / (2 * n)
  half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  by_hand = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
  assert interval == pytest.approx(by_hand, abs=1e-5)


# -------------------------------------------------------------------- faults


@pytest.mark.parametrize(
  ("fault", "error"),
  [
    (faulty_envs.throw, "OSError: the camera's cable is loose"),
    (faulty_envs.die, r"its process died \(exit code -9\)"),
    (faulty_envs.hang, r"its process did not answer for 3 s"),
  ],
)
def test_a_faulty_environment_costs_its_own_episode_only(
  fault, error, monkeypatch
):
  monkeypatch.setattr(simulation, "_ANSWER_S", 3.0)
  monkeypatch.setattr(simulation, "_END_S", 0.5)
  episodes = draw(1, "seen", "unseen")
  seeds = {episodes[1].seed, episodes[5].seed}
  make = faulty_envs.maker(PICTURES, fault, seeds)
  rollouts = list(runner.run(None, episodes, make, 6, 2, num_filmed=1))
  assert len(rollouts) == len(episodes)
  broken = {r.episode.seed for r in rollouts if r.outcome == BROKEN_OFF}
  assert broken == seeds
  for r in rollouts:
    if r.episode.seed in seeds:
      assert re.match(error, r.error)
    else:
      assert r.outcome == environment.SUCCESS and not r.error
      assert len(r.images) == r.steps + 1
  summary = runner.summarize(rollouts)
  assert summary["n"] == 7 and summary["successes"] == 5
  assert summary["outcomes"][BROKEN_OFF] == 2
  assert sum("cable" in e["error"] for e in summary["episodes"]) in (0, 2)


def test_an_action_that_is_no_number_breaks_its_episode_off():
  episodes = draw(2, "seen")

  def policy(images, instructions):
    plans, actions = runner.null(images, instructions)
    actions[[t == episodes[0].options.instruction for t in instructions]] = (
      np.nan
    )
    return plans, actions

  broken, fine = sorted(
    runner.run(policy, episodes, maker(max_steps=4), 2, 1),
    key=lambda r: r.episode.number,
  )
  assert "Error: got action [nan" in broken.error
  assert fine.outcome == environment.NOTHING


def test_actions_of_another_shape_stop_everything():
  def policy(images, instructions):
    return [""] * len(images), np.zeros((len(images), 7), np.float32)

  with pytest.raises(
    ValueError, match=r"got actions \[2, 7\] from the policy, expected \[2, 8\]"
  ):
    list(runner.run(policy, draw(2, "seen"), maker(), 2, 1))


def test_environments_that_cannot_be_made():
  config = TabletopConfig(styles=("oil",))
  make = functools.partial(simulation.make_tabletop, str(PICTURES), config)
  with pytest.raises(ValueError, match="got 'oil' for art style, expected"):
    list(runner.run(None, draw(1, "seen"), make, 1, 1))
  with pytest.raises(ValueError, match=r"got no environment \(its process"):
    list(runner.run(None, draw(1, "seen"), faulty_envs.die, 1, 1))

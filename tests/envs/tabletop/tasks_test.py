"""Layouts and success, judged from the world's state; nothing is drawn."""

import numpy as np
import pytest

from rt2_jax.action_spaces import TABLETOP_STATE
from rt2_jax.envs.tabletop import oracle, scene, tasks
from rt2_jax.envs.tabletop.instructions import FAMILIES, SIDES, Task
from rt2_jax.envs.tabletop.scene import Thing, World

NO_TURN = np.zeros(3)


@pytest.fixture(scope="module")
def world() -> World:
  return World(image_size=64)


def draw_task(family: str, rng: np.random.Generator) -> Task:
  side = list(SIDES)[rng.integers(4)] if family == "push" else ""
  return Task(family, "a", "b" if family.startswith("place") else "", side)


def lay(task: Task, rng: np.random.Generator) -> list[Thing]:
  mats = ["b", "d"] if task.family == "place_on" else []
  blocks = [n for n in "abcd" if n not in mats]
  return tasks.arrange(rng, task, blocks, mats)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_done_at_first_and_nothing_overlaps(world, family):
  rng = np.random.default_rng(0)
  for _ in range(20):
    task = draw_task(family, rng)
    things = lay(task, rng)
    world.reset(things, np.array([0.0, 0.0, 0.12]))
    assert not tasks.is_success(world, task)
    for _ in range(5):  # one second at rest
      world.step(np.zeros(3), NO_TURN, 1.0)
    assert world.moved().max() < 0.002
    places = world.spots()[:, :2]
    gaps = np.linalg.norm(places[:, None] - places, axis=-1)
    assert gaps[np.triu_indices(4, 1)].min() > tasks.APART - 0.002


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_solves_it(world, family):
  """`python -m data.make_tabletop` measures this on more episodes."""
  rng = np.random.default_rng(1)
  solved = 0
  for _ in range(20):
    task = draw_task(family, rng)
    start = rng.uniform([-0.14, -0.14, 0.1], [0.14, 0.12, 0.14])
    world.reset(lay(task, rng), start, float(rng.uniform(-0.3, 0.3)))
    for _ in range(60):
      action = oracle.act(world, task)
      if action[0] > 0.5:
        solved += tasks.is_success(world, task)
        break
      assert np.abs(action[1:4]).max() <= oracle.MAX_STEP + 1e-6
      assert np.abs(action[4:7]).max() <= oracle.MAX_TURN + 1e-6
      world.step(action[1:4], action[4:7], action[7])
  assert solved >= 19


def test_the_expert_finds_back_from_anywhere(world):
  task = Task("place_on", "a", "b")
  rng = np.random.default_rng(2)
  things = [Thing("a", True, -0.1, 0.0), Thing("b", False, 0.1, 0.0)]
  world.reset(things, np.array([0.0, 0.0, 0.12]))
  for t in range(80):
    action = oracle.act(world, task)
    if action[0] > 0.5:
      break
    if t % 4 == 3:
      action[1:7] += rng.uniform(-0.03, 0.03, 6)
    world.step(action[1:4], action[4:7], action[7])
  assert tasks.is_success(world, task)


def test_an_unsteady_hand_grasps_all_the_same(world):
  """A policy sees to a few mm; the expert must not wait for exactness."""
  rng = np.random.default_rng(3)
  task, solved = Task("pick", "a"), 0
  for _ in range(20):
    world.reset(lay(task, rng), np.array([0.0, 0.0, 0.12]))
    for _ in range(30):
      action = oracle.act(world, task)
      if action[0] > 0.5:
        break
      unsteady = action[1:4] + rng.normal(0, 0.006, 3)
      world.step(unsteady, action[4:7], action[7])
    solved += tasks.is_success(world, task)
  assert solved >= 18


def test_a_hand_that_closed_on_nothing_opens_again(world):
  world.reset([Thing("a", True, 0.1, 0.0)], np.array([0.0, 0.0, 0.12]))
  world.step(np.zeros(3), NO_TURN, 0.0)
  assert oracle.act(world, Task("pick", "a"))[7] == 1.0


def test_units_and_axes(world):
  world.reset([Thing("a", True, 0.1, 0.1)], np.array([0.0, 0.0, 0.15]))
  world.step(np.array([0.03, -0.02, -0.04]), np.array([0, 0, 0.2]), 0.0)
  world.step(np.zeros(3), NO_TURN, 0.0)
  np.testing.assert_allclose(world.hand(), [0.03, -0.02, 0.11], atol=1e-3)
  axes = world.data.body("hand").xmat.reshape(3, 3)
  assert np.arctan2(axes[1, 0], axes[0, 0]) == pytest.approx(0.2, abs=0.01)
  fingers = [world.data.joint(f).qpos[0] for f in ("left", "right")]
  np.testing.assert_allclose(fingers, scene.OPENING, atol=2e-3)  # closed


def test_the_hand_stays_above_the_table(world):
  world.reset([Thing("a", True, 0.1, 0.1)], np.array([0.0, 0.0, 0.1]))
  for _ in range(10):
    world.step(np.array([0.05, 0.05, -0.05]), np.full(3, 0.25), 1.0)
  np.testing.assert_allclose(world.position, [0.2, 0.2, 0.008])
  np.testing.assert_allclose(world.turn, scene.TURN_HIGH)
  bounds = [(d.low, d.high) for d in TABLETOP_STATE.dimensions]
  reach = zip(
    [*scene.LOW, *scene.TURN_LOW, 0],
    [*scene.HIGH, *scene.TURN_HIGH, 1],
    strict=True,
  )
  for (low, high), (least, most) in zip(bounds, reach, strict=True):
    assert low <= least < most <= high


def test_a_closed_hand_pushes(world):
  world.reset([Thing("a", True, 0.0, 0.0)], np.array([-0.1, 0.0, 0.012]))
  for _ in range(4):
    world.step(np.array([0.03, 0.0, 0.0]), NO_TURN, 0.0)
  assert 0.01 < world.spots()[0, 0] < 0.1
  assert world.held() is None
  assert tasks.engaged(world, Task("pick", "a")) == 0


def test_success_of_each_family(world):
  hand = np.array([0.0, 0.0, 0.08])
  things = [Thing("a", True, 0.0, 0.12), Thing("b", True, 0.0, 0.0)]
  world.reset(things, hand)
  assert tasks.is_success(world, Task("move_to", "b"))
  assert not tasks.is_success(world, Task("move_to", "a"))
  assert tasks.engaged(world, Task("move_to", "a")) == 1
  assert tasks.is_success(world, Task("place_next_to", "a", "b"))
  assert tasks.is_success(world, Task("push", "a", side="back"))
  assert not tasks.is_success(world, Task("push", "a", side="front"))
  assert not tasks.is_success(world, Task("pick", "a"))
  mat = Thing("m", False, 0.02, 0.11)
  world.reset([things[0], mat], hand)
  assert tasks.is_success(world, Task("place_on", "a", "m"))


def test_too_many_things_find_no_room():
  rng = np.random.default_rng(0)
  names = [f"block {i}" for i in range(12)]
  with pytest.raises(ValueError, match="got 12 things.*fewer distractors"):
    tasks.arrange(rng, Task("pick", names[0]), names, [])

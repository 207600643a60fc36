"""Lays out things for a task, and judges whether it has been done.

Judgements read the simulation's state, never a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rt2_jax.envs.tabletop import scene
from rt2_jax.envs.tabletop.instructions import Task
from rt2_jax.envs.tabletop.scene import Thing, World
from rt2_jax.errors import UserError

AREA = np.array([0.14, 0.14])  # things lie within ± this, m
APART = 0.13  # least distance between two things, m
MAX_YAW = 0.3  # of a block, rad

# What counts as done, in metres.
ABOVE = 0.035  # the hand is above a thing
LOW_HAND = 0.09  # fingertips of a hand that has come down to a thing
LIFTED = 0.05  # height of a block's middle
ON_MAT = 0.04  # between the middles of block and mat
BESIDE = 0.16  # between the middles of two things
STRIP = 0.105  # a block beyond this is at the side
STAYED = 0.03  # a reference that moved less has stayed
ENGAGED = 0.02  # a block that moved more has been acted on

BESIDE_GOAL = 0.128  # where the oracle puts a block beside another, m
_FAR = 0.2  # a block that is to come beside another starts farther away
_DIRECTIONS = {
  "left": np.array([-1.0, 0.0]),
  "right": np.array([1.0, 0.0]),
  "back": np.array([0.0, 1.0]),
  "front": np.array([0.0, -1.0]),
}
_TRIES = 2000


def direction(side: str) -> np.ndarray:
  """Returns the unit vector towards a side, float64[2]."""
  return _DIRECTIONS[side]


def lay(task: Task, others: Sequence[str]) -> tuple[list[str], list[str]]:
  """Names the blocks and the mats.

  Where something is to be put on a mat, every other distractor is a mat too:
  otherwise the only mat would give the answer away without its picture.
  """
  if task.family == "place_on":
    return [task.target, *others[1::2]], [task.reference, *others[::2]]
  reference = [task.reference] if task.reference else []
  return [task.target, *reference, *others], []


def arrange(
  rng: np.random.Generator,
  task: Task,
  blocks: Sequence[str],
  mats: Sequence[str],
) -> list[Thing]:
  """Lays things on the table so that the task can be and is not yet done.

  Args:
    rng: gives the places.
    task: names the target and the reference.
    blocks: names of what lies there as a block.
    mats: names of what lies there as a mat.

  Raises:
    UserError: so many things that they find no room.
  """
  names = [*blocks, *mats]
  target = names.index(task.target)
  reference = names.index(task.reference) if task.reference else -1
  for _ in range(_TRIES):
    places = scatter(rng, len(names))
    if places is not None and is_possible(
      task, places, target, reference, len(blocks)
    ):
      break
  else:
    raise UserError(
      f"got {len(names)} things for {task.family!r}, which find no room on the "
      "table; ask for fewer distractors"
    )
  return [
    Thing(
      name,
      i < len(blocks),
      *places[i],
      yaw=float(rng.uniform(-MAX_YAW, MAX_YAW)) if i < len(blocks) else 0.0,
    )
    for i, name in enumerate(names)
  ]


def scatter(rng: np.random.Generator, count: int) -> np.ndarray | None:
  """Draws places apart from each other, float64[count, 2]; None: no luck."""
  places = np.zeros((0, 2))
  for _ in range(20 * count):
    place = rng.uniform(-AREA, AREA)
    if not len(places) or distances(places, place).min() > APART:
      places = np.vstack([places, place])
      if len(places) == count:
        return places
  return None


def out_of_the_way(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
  """Draws a place for the hand, float64[3] (m), where it hides little."""
  hands = rng.uniform([-0.13, -0.14, 0.10], [0.13, 0.10, 0.14], (16, 3))
  # The camera stands in front: what is hidden lies behind the hand.
  hidden = hands[:, :2] + [0.0, 0.08]
  room = [distances(places, place).min() for place in hidden]
  return hands[int(np.argmax(room))]


def distances(places: np.ndarray, place: np.ndarray) -> np.ndarray:
  """Measures distances float64[N] from float64[N, 2] to one place."""
  return np.linalg.norm(places - place, axis=1)


def is_possible(
  task: Task,
  places: np.ndarray,
  target: int,
  reference: int,
  num_blocks: int,
) -> bool:
  """Tells whether the way is free and the task is not done yet.

  Args:
    task: what is to be done.
    places: float64[N, 2], the blocks first.
    target: which is to be moved.
    reference: where to; -1 for none.
    num_blocks: how many are blocks.
  """
  if task.family == "place_next_to":
    way = float(np.linalg.norm(places[target] - places[reference]))
    return way > _FAR and beside(places, target, reference) is not None
  if task.family == "push":
    ahead = direction(task.side)
    offset = np.delete(places[:num_blocks], target, 0) - places[target]
    along = offset @ ahead
    across = np.abs(offset @ ahead[::-1])
    blocked = (across < 0.125) & (along > -0.2)
    # The hand must find room behind the block, and the block a way to go.
    has_room = -0.105 < places[target] @ ahead < 0.02
    return has_room and not blocked.any()
  return True


def beside(
  places: np.ndarray, target: int, reference: int
) -> np.ndarray | None:
  """Finds the free place beside the reference, nearest to the target.

  Args:
    places: float64[N, 2] of all things.
    target: which is to be put there.
    reference: beside which.

  Returns:
    float64[2], or None where there is no room.
  """
  angles = np.arange(8) * np.pi / 4
  around = np.stack([np.cos(angles), np.sin(angles)], 1)
  candidates = places[reference] + BESIDE_GOAL * around
  others = np.delete(places, [target, reference], 0)
  free = (np.abs(candidates) <= AREA + 0.01).all(1)
  for other in others:
    free &= distances(candidates, other) > APART - 0.005
  if not free.any():
    return None
  candidates = candidates[free]
  return candidates[distances(candidates, places[target]).argmin()]


def is_success(world: World, task: Task) -> bool:
  """Tells whether the task is done now."""
  target = world.find(task.target)
  spot, held = world.spots()[target], world.held()
  if task.family == "move_to":
    hand = world.hand()
    return bool(
      np.linalg.norm(hand[:2] - spot[:2]) < ABOVE and hand[2] < LOW_HAND
    )
  if task.family == "pick":
    return held == target and bool(spot[2] > LIFTED)
  if held is not None or spot[2] > scene.BLOCK_HEIGHT + 0.01:
    return False
  if task.family == "push":
    return bool(spot[:2] @ direction(task.side) > STRIP)
  reference = world.find(task.reference)
  way = np.linalg.norm(spot[:2] - world.spots()[reference, :2])
  if task.family == "place_on":
    return bool(way < ON_MAT)
  return bool(way < BESIDE and world.moved()[reference] < STAYED)


def is_on_another(world: World, task: Task) -> bool:
  """Tells whether the target lies on a wrong reference."""
  names = {t.name for t in world.things} - {task.target, task.reference}
  return task.family == "place_on" and any(
    is_success(world, dataclasses.replace(task, reference=name))
    for name in names
  )


def engaged(world: World, task: Task) -> int | None:
  """Finds the thing that the robot holds, has moved, or hovers over."""
  held = world.held()
  if held is not None:
    return held
  moved = world.moved()
  if moved.max() > ENGAGED:
    return int(moved.argmax())
  hand = world.hand()
  if task.family == "move_to" and hand[2] < LOW_HAND:
    way = distances(world.spots()[:, :2], hand[:2])
    return int(way.argmin()) if way.min() < 0.05 else None
  return None

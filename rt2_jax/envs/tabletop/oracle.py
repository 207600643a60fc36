"""Scripted expert: the next action from the state alone.

It has no memory, so that behaviour cloning can learn it from one image, and so
that it can go on from any state that a policy has reached.
"""

from __future__ import annotations

import math

import numpy as np

from rt2_jax.envs.tabletop import scene, tasks
from rt2_jax.envs.tabletop.instructions import Task
from rt2_jax.envs.tabletop.scene import World

MAX_STEP = 0.05  # m per step and axis
MAX_TURN = 0.25  # rad per step and axis
# The expert moves by multiples of these. Finer motions could not be told apart
# in a small picture, and who imitates them would find, among many unlikely
# answers, standing still the likeliest.
_MOVE = 0.01  # m
_TURN = 0.05  # rad
_HOVER = 0.07  # fingertips pass above all blocks, m
_LIFT = 0.075  # and so does a block in the hand
_GRASP = 0.012
_RELEASE = 0.015
_NEAR = 0.008  # of a goal, m: more than _MOVE leaves in two axes
_OVER = 0.012  # m from above a thing
_AROUND = 0.01  # m: a block this far from the fingers' middle is grasped
_ALIGNED = 0.12  # rad, likewise
_FUNNEL = 4.0  # m of height for each m beside the block
_TURNED = 0.02  # m beside the block that a rad of turning counts as
_BEHIND = scene.BLOCK + 0.035  # from a block's middle to where a push begins
_PUSH_GOAL = 0.12


def act(world: World, task: Task) -> np.ndarray:
  """Acts: float32[8] terminate, dx dy dz (m), droll dpitch dyaw, gripper."""
  target = world.find(task.target)
  if task.family == "move_to":
    return _move_to(world, target)
  if task.family == "push":
    return _push(world, task, target)
  if world.held() != target:
    if task.family != "pick" and tasks.is_success(world, task):
      return _leave(world)
    return _grasp(world, target)
  if task.family == "pick":
    if world.position[2] < _LIFT - _NEAR:
      return _go(world, np.array([*world.position[:2], _LIFT]), gripper=0.0)
    return _stop(gripper=0.0)
  return _carry(world, task, target)


def _move_to(world: World, target: int) -> np.ndarray:
  goal = np.array([*world.spots()[target, :2], _HOVER])
  if np.linalg.norm(goal - world.position) < _OVER:
    return _stop(gripper=1.0)
  return _go(world, goal)


def _grasp(world: World, target: int) -> np.ndarray:
  """Comes down a funnel around the block, turning on the way, and closes.

  The hand's lowest height is a smooth function of its distance from the block.
  A demonstration therefore holds no switch from one motion to the next, at
  which a small error of perception would leave a policy hovering.
  """
  spot = world.spots()[target]
  turn = math.remainder(world.yaw(target) - world.turn[2], math.pi / 2)
  beside = float(np.linalg.norm(spot[:2] - world.position[:2]))
  astray = max(beside - _AROUND, 0.0) + _TURNED * max(abs(turn) - _ALIGNED, 0.0)
  bottom = max(spot[2] - scene.BLOCK_HEIGHT, 0.0) + _GRASP
  height = min(_HOVER, bottom + _FUNNEL * astray)
  if world.position[2] < height - 2 * _NEAR:  # up first: blocks are in the way
    return _go(world, np.array([*world.position[:2], height]))
  if astray or world.position[2] > bottom + _AROUND:
    return _go(world, np.array([*spot[:2], height]), yaw=turn)
  return _go(world, world.position, gripper=0.0)


def _carry(world: World, task: Task, target: int) -> np.ndarray:
  """Brings the held block to its place and lets go of it."""
  places = world.spots()[:, :2]
  reference = world.find(task.reference)
  if task.family == "place_on":
    goal = places[reference]
  else:
    goal = tasks.beside(places, target, reference)
    if goal is None:  # someone moved the others; anywhere near will do
      way = places[target] - places[reference]
      way = way / max(float(np.linalg.norm(way)), 1e-6)
      goal = places[reference] + tasks.BESIDE_GOAL * way
  # The block hangs where the fingers caught it, not in their very middle.
  goal = goal + world.position[:2] - places[target]
  if np.linalg.norm(goal - world.position[:2]) > _NEAR:
    low = world.position[2] < _LIFT - 2 * _NEAR
    across = world.position[:2] if low else goal
    return _go(world, np.array([*across, _LIFT]), gripper=0.0)
  if world.position[2] > _RELEASE + _NEAR:
    down = np.array([*world.position[:2], _RELEASE])
    return _go(world, down, gripper=0.0)
  return _go(world, world.position)


def _push(world: World, task: Task, target: int) -> np.ndarray:
  """Lowers the closed hand behind the block and drives it to the side."""
  if tasks.is_success(world, task):
    return _leave(world, gripper=0.0)
  ahead = tasks.direction(task.side)
  across = ahead[::-1]
  spot = world.spots()[target, :2]
  offset = world.position[:2] - spot
  behind = -float(offset @ ahead)
  astray = float(offset @ across)
  ready = behind > scene.BLOCK * 0.9 and abs(astray) < 0.02
  if ready and world.position[2] < _GRASP + 2 * _NEAR and behind < 0.11:
    way = min(MAX_STEP, _PUSH_GOAL - float(spot @ ahead) + behind - 0.055)
    step = max(way, 0.01) * ahead - astray * across
    goal = np.array([*(world.position[:2] + step), _GRASP])
    return _go(world, goal, gripper=0.0)
  start = spot - _BEHIND * ahead
  if np.linalg.norm(start - world.position[:2]) < _NEAR:
    return _go(world, np.array([*start, _GRASP]), gripper=0.0)
  low = world.position[2] < _HOVER - _NEAR
  goal = [*(world.position[:2] if low else start), _HOVER]
  return _go(world, np.array(goal), yaw=-world.turn[2], gripper=0.0)


def _leave(world: World, gripper: float = 1.0) -> np.ndarray:
  """Goes straight up from what is done, then ends the episode."""
  if world.position[2] < _HOVER - _NEAR:
    up = np.array([*world.position[:2], _HOVER])
    return _go(world, up, gripper=gripper)
  return _stop(gripper)


def _stop(gripper: float) -> np.ndarray:
  return np.array([1, 0, 0, 0, 0, 0, 0, gripper], np.float32)


def _go(
  world: World, goal: np.ndarray, yaw: float = 0.0, gripper: float = 1.0
) -> np.ndarray:
  """Moves one step towards goal float[3], each axis alone, hand upright."""
  way = _MOVE * np.round((goal - world.position) / _MOVE)
  way = np.clip(way, -MAX_STEP, MAX_STEP)
  turn = _TURN * np.round(np.array([*-world.turn[:2], yaw]) / _TURN)
  turn = np.clip(turn, -MAX_TURN, MAX_TURN)
  return np.array([0.0, *way, *turn, gripper], np.float32)

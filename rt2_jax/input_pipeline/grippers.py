"""Grippers: the conventions of datasets as absolute numbers, 1 = open.

Shapes: T steps of an episode.
"""

import numpy as np


def absolute_gripper(closedness: np.ndarray) -> np.ndarray:
  """Turns relative commands (+1 close, -1 open, 0 hold) into absolute 1 = open.

  The last command holds. Before the first one the gripper is in the opposite
  state; without any command it is open. float[T, 1] -> float32[T, 1].
  """
  command = np.where(closedness > 0.1, 0.0, np.nan)
  command = np.where(closedness < -0.1, 1.0, command)[:, 0]
  given = np.flatnonzero(~np.isnan(command))
  start = 1.0 - command[given[0]] if given.size else 1.0
  with_start = np.concatenate([[start], command])
  last = np.maximum.accumulate(
    np.where(np.isnan(with_start), 0, np.arange(len(with_start)))
  )
  return with_start[last][1:, None].astype(np.float32)


def binary_gripper(opening: np.ndarray) -> np.ndarray:
  """Rounds to 0 or 1 (open); a value in between takes the next settled one.

  While the gripper moves it is on its way to what comes next; at the end of
  an episode the nearer state is taken. float[T, 1] -> float32[T, 1].
  """
  settled = (opening > 0.95) | (opening < 0.05)
  state = (opening > 0.5).astype(np.float32)[:, 0]
  position = np.arange(len(state))
  following = np.where(settled[:, 0], position, len(state))
  following = np.minimum.accumulate(following[::-1])[::-1]
  return state[np.where(following < len(state), following, position)][:, None]

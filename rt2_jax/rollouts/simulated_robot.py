"""A simulator's environment as a robot that a control loop drives."""

from __future__ import annotations

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.observation import Observation
from rt2_jax.rollouts.trial import Environment, Outcome, Trial


class SimulatedRobot:
  """One trial of an environment, as `robot_loop.Robot`.

  Its time is the robot's: it stands still while the robot holds.

  Attributes:
    outcome: the end of the trial; None until then.
  """

  def __init__(self, env: Environment, space: ActionSpace, trial: Trial):
    """Begins the trial."""
    self._env, self._space = env, space
    self._seen = env.reset(trial)
    self._last = np.zeros(len(space), np.float32)
    self.outcome: Outcome | None = None

  def observe(self) -> Observation:
    """Returns what is seen now."""
    return self._seen

  def apply(self, action: np.ndarray) -> None:
    """Takes a step; does nothing after the trial's end."""
    if self.outcome is None:
      self._last = action
      self._seen, self.outcome = self._env.step(action)

  def hold(self) -> None:
    """Takes no step."""

  def stop(self) -> None:
    """Ends the trial: terminates, does not move, and holds the gripper."""
    if self.outcome is None:
      self.apply(self._space.after_end(self._last))

  def position(self) -> None:
    """A benchmark does not say where the hand is."""

  def is_over(self) -> bool:
    """Returns whether the trial has ended."""
    return self.outcome is not None

  def correction(self) -> None:
    """Nobody corrects it."""

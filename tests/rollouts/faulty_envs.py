"""The tabletop with faults, for processes that simulate.

Each fault comes in the third step of the episodes of some seeds; otherwise
all is as in the real environment.
"""

import functools
import os
import signal
import time

from rt2_jax.envs.tabletop import pictures
from rt2_jax.envs.tabletop.environment import TabletopConfig, TabletopEnv

FAULTY_AFTER = 3


def throw():
  raise OSError("the camera's cable is loose")


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def hang():
  time.sleep(600)


class FaultyEnv(TabletopEnv):
  """Has a fault in the episodes that begin with one of some seeds."""

  def __init__(self, known, config, fault, seeds):
    super().__init__(known, config)
    self._fault, self._seeds = fault, seeds

  def reset(self, *, seed=None, options=None):
    self._seed, self._count = seed, 0
    return super().reset(seed=seed, options=options)

  def step(self, action):
    self._count += 1
    if self._seed in self._seeds and self._count == FAULTY_AFTER:
      self._fault()
    return super().step(action)


def make(path: str, config: TabletopConfig, fault, seeds):
  return FaultyEnv(pictures.load(path), config, fault, seeds)


def maker(path, fault, seeds):
  config = TabletopConfig(image_size=32)
  return functools.partial(make, str(path), config, fault, seeds)

"""Measures one simulated environment, driven by the scripted expert."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import statistics
import time
from typing import Any

from rt2_jax.benchmarks import meters


def measure(episodes: int) -> dict[str, Any]:
  """Drives the environment in a process of its own.

  Its libraries, and what they leave behind, stay outside this one.
  """
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    return pool.submit(drive, episodes).result()


def drive(episodes: int) -> dict[str, Any]:
  """Takes the CPU milliseconds of each part of the expert's episodes."""
  os.environ.setdefault("LP_NUM_THREADS", "1")  # one CPU draws
  from rt2_jax.envs.tabletop import pictures
  from rt2_jax.envs.tabletop.environment import TabletopEnv

  env = TabletopEnv(pictures.load(pictures.PATH))
  clock = time.process_time
  reset_s, step_s = [], []
  for seed in range(episodes):
    start, over = clock(), False
    env.reset(seed=seed)
    reset_s.append(clock() - start)
    while not over:
      action = env.oracle_action()
      start = clock()
      _, _, terminated, truncated, _ = env.step(action)
      step_s.append(clock() - start)
      over = terminated or truncated
  render_s = meters.seconds(env.render, 100, clock)
  size = env.config.image_size
  return {
    "image": f"{size}x{size}",
    "reset_cpu_ms": round(1e3 * statistics.median(reset_s), 2),
    "step_cpu_ms": round(1e3 * statistics.median(step_s), 2),
    "render_cpu_ms": round(1e3 * render_s, 2),
    "steps_per_episode": round(len(step_s) / episodes, 1),
    "steps_per_cpu_s": round(len(step_s) / sum(step_s)),
    "episodes_per_cpu_s": round(episodes / (sum(reset_s) + sum(step_s)), 1),
  }

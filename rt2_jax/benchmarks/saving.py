"""Measures the speed of a checkpoint, and what it costs the steps beside it."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import jax
import numpy as np

from rt2_jax import sharding, storage, trees
from rt2_jax.benchmarks import meters
from rt2_jax.benchmarks.training import Case
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.train_config import TrainConfig
from rt2_jax.train_state import TrainState
from rt2_jax.weights.pretrained import parameter_shapes

_META = {"tokenizer_sha256": ""}


def draw_state(config: TrainConfig, gigabytes: float) -> dict[str, Any]:
  """Draws float32 arrays with the shapes of a config's parameters.

  They are taken in their order until they have so many gigabytes; the last one
  has as many of its rows as fit. Random bits do not compress.
  """
  random = np.random.default_rng(0)
  left = int(gigabytes * 1e9) // 4
  flat = {}
  for name, shape in parameter_shapes(config.model).items():
    row = math.prod(shape[1:])
    rows = min(shape[0], left // row)
    if rows:
      flat[name] = jax.device_put(random.random((rows, *shape[1:]), np.float32))
      left -= rows * row
  return trees.unflatten(flat)


def measure(state: dict[str, Any], folder: str, repeats: int) -> dict[str, Any]:
  """Saves and restores a state several times; the place is left as it was.

  Returns:
    The fastest of each: `blocked_s` until training goes on, `save_s` until the
    checkpoint is complete, `restore_s`; each with checksums, and the last two
    in MB/s, too.

  Raises:
    UserError: the folder cannot be written.
  """
  place = storage.locate(folder, "--folders") / "checkpoint_benchmark"
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  times: list[tuple[float, float, float]] = []
  try:
    with Checkpoints(place, keep=1) as checkpoints:
      for step in range(repeats):
        start = time.perf_counter()
        checkpoints.save(step, state, None, _META, b" ")
        blocked = time.perf_counter()
        checkpoints.wait()
        saved = time.perf_counter()
        restored = checkpoints.restore_params(checkpoints.stored_params(step))
        jax.block_until_ready(restored)
        end = time.perf_counter()
        times.append((blocked - start, saved - start, end - saved))
        del restored
  finally:
    storage.remove(place)
  blocked_s, save_s, restore_s = map(min, zip(*times, strict=True))
  return {
    "folder": folder,
    "bytes": size,
    "arrays": len(jax.tree.leaves(state)),
    "blocked_s": round(blocked_s, 3),
    "save_s": round(save_s, 3),
    "restore_s": round(restore_s, 3),
    "save_mb_per_s": round(size / save_s / 1e6, 1),
    "restore_mb_per_s": round(size / restore_s / 1e6, 1),
  }


def overhead(
  case: Case, state: TrainState, folder: str, num_steps: int, repeats: int
) -> dict[str, Any]:
  """Compares steps after a save with as many steps without one.

  They take turns. A save has ended, in the background, before its turn ends.

  Args:
    case: the config's step and batch.
    state: is used up.
    folder: gets the checkpoints; is left as it was.
    num_steps: of a turn.
    repeats: turns of each kind.

  Returns:
    Medians of the turns: `plain_cpu_s` and `saving_cpu_s` in CPU time,
    `plain_s` and `saving_s` in time; `blocked_s`, until a save lets steps go
    on. `overhead` is the fraction of CPU time that a save adds.

  Raises:
    UserError: the folder cannot be written.
  """
  place = storage.locate(folder, "--folders") / "overhead_benchmark"
  batch = sharding.same_rows_to_devices(case.rows, case.trainer.mesh)
  step = case.trainer.lower_step(batch).compile()
  plain, saving, blocked = [], [], []

  def save(checkpoints, number):
    start = time.perf_counter()
    checkpoints.save(number, *case.trainer.to_items(state), _META, b" ")
    blocked.append(time.perf_counter() - start)

  try:
    with Checkpoints(place, keep=1) as checkpoints:
      state, _ = step(state, batch)
      save(checkpoints, 0)  # compiles
      checkpoints.wait()
      for turn in range(2 * repeats):
        start = meters.cpu_seconds(), time.perf_counter()
        if turn % 2:
          save(checkpoints, turn)
        for _ in range(num_steps):
          state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        checkpoints.wait()
        spent = meters.cpu_seconds() - start[0], time.perf_counter() - start[1]
        (saving if turn % 2 else plain).append(spent)
  finally:
    storage.remove(place)
  plain_cpu_s, plain_s = map(statistics.median, zip(*plain, strict=True))
  saving_cpu_s, saving_s = map(statistics.median, zip(*saving, strict=True))
  return {
    "bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
    "steps": num_steps,
    "plain_cpu_s": round(plain_cpu_s, 2),
    "saving_cpu_s": round(saving_cpu_s, 2),
    "plain_s": round(plain_s, 2),
    "saving_s": round(saving_s, 2),
    "blocked_s": round(statistics.median(blocked[1:]), 3),
    "overhead": round(saving_cpu_s / plain_cpu_s - 1, 4),
  }

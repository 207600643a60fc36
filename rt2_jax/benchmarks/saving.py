"""Measures how fast a checkpoint is written to a place, and read from it."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import numpy as np

from rt2_jax import storage, trees
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.train_config import TrainConfig
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

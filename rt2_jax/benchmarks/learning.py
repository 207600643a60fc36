"""Trains a small policy on pictures drawn as they are needed.

A white square lies on a grey table. The action is the way from the middle to
it. Within a minute this shows whether training works on a device.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from rt2_jax import sharding
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.benchmarks import synthetic
from rt2_jax.held_params import as_read
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt
from rt2_jax.train_config import TrainConfig

_CANVAS = 64
_SQUARE = 12
_EVERY = 50  # steps between the losses that are returned
_TRIED = 64  # pictures that were not trained on


def learn(config: TrainConfig, seconds: float) -> dict[str, Any]:
  """Trains for some seconds after the step is compiled, then acts.

  Returns:
    steps; step_ms; losses, means over 50 steps; and `error`, the mean distance
    between the policy's dx and dy and the right ones on new pictures, as a
    fraction of their range. `chance` is the error of an action that always
    points to the middle.
  """
  prompt, action_tokenizers = synthetic.words(config)
  name, actions = next(iter(action_tokenizers.items()))
  mesh = config.make_mesh(jax.devices()[:1])
  trainer = config.make_trainer({name: actions}, mesh)
  rng = np.random.default_rng(0)

  def batch():
    rows, _ = draw(rng, config.batch_size, prompt, actions)
    return sharding.same_rows_to_devices(rows, mesh)

  state, step = trainer.init_state(), trainer.compile_step()
  state, metrics = step(state, batch())
  losses, pending = [], [metrics["loss"]]
  start = time.perf_counter()
  while time.perf_counter() - start < seconds:
    state, metrics = step(state, batch())
    pending.append(metrics["loss"])
    if len(pending) == _EVERY:
      losses.append(_mean(pending, config.batch_size))
      pending = []
  steps = int(state.step)
  elapsed = time.perf_counter() - start
  held = as_read(dict(state.acting), mesh)
  policy = Policy(config.model, held, prompt, actions, mesh=mesh)
  rows, expected = draw(rng, _TRIED, prompt, actions)
  got = policy(rows.image[:, 0], [synthetic.INSTRUCTION] * _TRIED)
  places = [actions.space.names.index(n) for n in ("dx", "dy")]
  span = [
    actions.space.dimensions[i].high - actions.space.dimensions[i].low
    for i in places
  ]
  wrong = np.abs(got - expected)[:, places] / span
  return {
    "steps": steps,
    "step_ms": round(1e3 * elapsed / max(steps - 1, 1), 2),
    "losses": losses or [_mean(pending, config.batch_size)],
    "error": round(float(wrong.mean()), 4),
    "chance": round(float((np.abs(expected)[:, places] / span).mean()), 4),
  }


def _mean(losses: list[jax.Array], batch_size: int) -> float:
  total = sum(float(loss.sum()) for loss in losses)
  return round(total / len(losses) / batch_size, 4)


def draw(
  rng: np.random.Generator, rows: int, prompt: Prompt, actions: ActionTokenizer
) -> tuple[Batch, np.ndarray]:
  """Draws pictures and their actions.

  Returns:
    The batch, and the actions float32[B, D].
  """
  place = rng.integers(0, _CANVAS - _SQUARE + 1, (rows, 2))
  image = rng.integers(90, 130, (rows, 1, _CANVAS, _CANVAS, 3), np.uint8)
  for picture, (y, x) in zip(image[:, 0], place, strict=True):
    picture[y : y + _SQUARE, x : x + _SQUARE] = 255
  action = np.zeros((rows, len(actions.space)), np.float32)
  way = 2.0 * place / (_CANVAS - _SQUARE) - 1.0
  for name, axis in (("dx", 1), ("dy", 0)):
    i = actions.space.names.index(name)
    action[:, i] = way[:, axis] * actions.space.dimensions[i].high
  action = actions.to_action(actions.to_bins(action))
  suffixes = [prompt.suffix(actions.encode(one[None])) for one in action]
  suffix, mask_loss = map(np.stack, zip(*suffixes, strict=True))
  prefix, mask_input = prompt.robot_prefixes([synthetic.INSTRUCTION] * rows)
  size = np.full((rows, 1, 2), _CANVAS, np.int32)
  source = np.zeros(rows, np.int32)
  batch = Batch(image, size, prefix, mask_input, suffix, mask_loss, source)
  return batch, action

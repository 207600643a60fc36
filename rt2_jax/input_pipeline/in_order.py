"""Sources read once, in order, for evaluation: the same rows as in training.

Shapes: b examples of one call, F images, H x W pixels of the canvas, A actions
of a chunk (the horizon), D dimensions of an action.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.damage import Damage
from rt2_jax.input_pipeline.examples import (
  Examples,
  RobotExamples,
  WebExamples,
)
from rt2_jax.input_pipeline.frames import canvas_for, place_frames
from rt2_jax.input_pipeline.web import WebExample
from rt2_jax.observation import Batched


def read_steps(
  examples: RobotExamples,
  resolution: int,
  batch_size: int,
  limit: int | None = None,
  max_skipped: int = 0,
) -> Iterator[tuple[Batched, np.ndarray]]:
  """Reads the steps of a source once, in order, for evaluation.

  Args:
    examples: what to read.
    resolution: of the encoder.
    batch_size: b, but for the last call.
    limit: how many steps, evenly spread over the source; None: all.
    max_skipped: damaged steps that may be left out.

  Yields:
    b observations, and the recorded chunks float32[b, A, D].
  """
  source = examples.source
  for chosen, _, pixels, sizes in _in_order(
    examples, resolution, batch_size, limit, max_skipped
  ):
    instructions = [source.instruction(i) for i in chosen]
    state = source.index.state[chosen]
    recorded = examples.recorded_chunks(chosen)
    yield Batched(pixels, sizes, instructions, state), recorded


def read_questions(
  examples: WebExamples,
  resolution: int,
  batch_size: int,
  limit: int | None = None,
  max_skipped: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[WebExample]]]:
  """Reads the examples of a web source once, in order, for evaluation.

  Args: as `read_steps`.

  Yields:
    images uint8[b, F, H, W, 3] on a canvas, their sizes int32[b, F, 2], and b
    examples.
  """
  for chosen, data, pixels, sizes in _in_order(
    examples, resolution, batch_size, limit, max_skipped
  ):
    yield pixels, sizes, examples.parse(chosen, data)


def _in_order(
  examples: Examples,
  resolution: int,
  batch_size: int,
  limit: int | None,
  max_skipped: int,
) -> Iterator[tuple[list[int], list[list[bytes]], np.ndarray, np.ndarray]]:
  """Yields (numbers, bytes as read, images, sizes) of b examples."""
  canvas = canvas_for([examples.largest_image], [1.0], resolution)
  damage = Damage(max_skipped)
  for numbers in _calls(len(examples), batch_size, limit):
    rows = []
    for i in map(int, numbers):
      try:
        rows.append((i, *_read(examples, i, canvas, resolution)))
      except UserError as error:
        damage.skip(error)
    if rows:
      chosen, data, pixels, sizes = zip(*rows, strict=True)
      yield list(chosen), list(data), np.stack(pixels), np.stack(sizes)


def _read(
  examples: Examples, i: int, canvas: tuple[int, int], resolution: int
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
  """Reads (bytes, images on a canvas, their sizes) of one example."""
  (requests,) = examples.requests([i])
  data = examples.storage.read(requests)
  (encoded,), *_ = examples.rows(np.array([i]), np.array([0]), [data])
  pixels = np.zeros((len(encoded), *canvas, 3), np.uint8)
  try:
    return data, pixels, place_frames(encoded, pixels, resolution)
  except UserError as error:
    raise UserError(f"{examples.location(i)}: {error}") from error


def _calls(
  size: int, batch_size: int, limit: int | None
) -> Iterator[np.ndarray]:
  """Numbers below `size`, at most `limit` of them, evenly spread."""
  count = size if limit is None else min(size, limit)
  numbers = np.arange(count) * size // max(count, 1)
  for first in range(0, count, batch_size):
    yield numbers[first : first + batch_size]

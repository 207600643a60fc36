"""Batches from sources: reads in parallel, decodes after selection.

Shapes: B rows of the batch that this host loads, F images, H x W pixels of the
canvas on which images of all sizes lie, P and S columns of the text.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
import psutil

from rt2_jax.batch import Batch
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.damage import Damage
from rt2_jax.input_pipeline.examples import Examples, Rows
from rt2_jax.input_pipeline.frames import canvas_for, place_frames
from rt2_jax.input_pipeline.mixture import Drawn, Mixture, by_source
from rt2_jax.input_pipeline.read_ahead import read_ahead
from rt2_jax.ranges import at_least

_LOG = logging.getLogger(__name__)

_PREFETCH = 2  # batches decoded ahead of the step that uses them
_DRAWN_ROWS = 2048  # rows that are drawn together


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
  """Fields of a config's `loader`.

  Attributes:
    num_threads: batches that are read and decoded at the same time.
    max_skipped: damaged or too long examples that may be left out, or replaced
      by the next one of their source; 0 makes the first one an error.
    index_folder: where indexes of shards are kept; "" keeps none.
  """

  num_threads: Annotated[int, at_least(1)] = 2
  max_skipped: Annotated[int, at_least(0)] = 0
  index_folder: str = ""


class Loader:
  """Reads this host's rows of every global batch, from any step on."""

  def __init__(
    self,
    examples: Sequence[Examples],
    mixture: Mixture,
    batch_size: int,
    rows: np.ndarray,
    resolution: int,
    num_images: int = 1,
    num_threads: int = 2,
    max_skipped: int = 0,
  ):
    """Chooses the canvas, and checks that the buffers fit into memory.

    Args:
      examples: the sources of the mixture.
      mixture: which example sits at (step, row).
      batch_size: rows of the global batch.
      rows: int[n], the rows of the global batch that this host loads.
      resolution: of the encoder; the canvas is at least as large.
      num_images: F, images of every example.
      num_threads: batches that are read and decoded at the same time.
      max_skipped: damaged examples of a run that may be left out, or replaced
        by the next one of their source; 0 makes the first one an error.

    Raises:
      UserError: more was left out already than may be, or the buffers do not
        fit into memory.
    """
    self.examples = examples
    self.mixture = mixture
    self.batch_size = batch_size
    self.rows = np.asarray(rows)
    self.num_threads = num_threads
    self.resolution = resolution
    self.num_images = num_images
    self._steps_at_once = max(1, _DRAWN_ROWS // len(self.rows))
    self._draw_block = functools.lru_cache(4)(self._draw_steps)
    self.damage = Damage(max_skipped)
    for each in examples:
      for loss in each.skipped:
        self.damage.skip(UserError(loss.problem), loss.examples)
    self.damage.share(len(self.rows) / batch_size)
    sizes = [each.largest_image for each in examples]
    self.canvas = canvas_for(sizes, mixture.weights, resolution)
    self._check_memory()

  def batches(self, start: int, stop: int) -> Iterator[Batch]:
    """Yields the batches of steps start..stop-1, in order.

    Raises:
      UserError: an example that cannot be read or decoded, with its place,
        once more than `max_skipped` were met.
    """
    steps = range(start, stop)
    ahead = read_ahead(self._load, steps, self.num_threads, _PREFETCH)
    for step, batch in zip(steps, ahead, strict=True):
      try:
        yield batch.result()
      except UserError:
        yield self._load_carefully(step)

  def _load(self, step: int) -> Batch:
    """Reads and decodes the batch of a step."""
    drawn = self.draw(step)
    pixels = self._black_canvas(len(self.rows))
    sizes = np.zeros((len(self.rows), self.num_images, 2), np.int32)
    columns: list[np.ndarray] = []
    for s, mine in by_source(drawn.source):
      examples, numbers = self.examples[s], drawn.example[mine]
      images, *text = self._read(examples, numbers, drawn.epoch[mine])
      columns = columns or [
        np.empty((len(self.rows), *x.shape[1:]), x.dtype) for x in text
      ]
      for column, values in zip(columns, text, strict=True):
        column[mine] = values
      for b, i, encoded in zip(mine, numbers, images, strict=True):
        sizes[b] = self._place(examples, i, encoded, pixels[b])
    return Batch(pixels, sizes, *columns, drawn.source)

  def _read(
    self, examples: Examples, numbers: np.ndarray, epochs: np.ndarray
  ) -> Rows:
    """Reads examples of one source, in one call for the sake of latency."""
    requests = examples.requests(numbers)
    data = iter(examples.storage.read([r for each in requests for r in each]))
    own = [[next(data) for _ in each] for each in requests]
    return examples.rows(numbers, epochs, own)

  def draw(self, step: int) -> Drawn:
    """Draws this host's examples of a step."""
    block, i = divmod(step, self._steps_at_once)
    here = slice(i * len(self.rows), (i + 1) * len(self.rows))
    return Drawn(*(column[here] for column in self._draw_block(block)))

  def _draw_steps(self, block: int) -> Drawn:
    """Draws some steps together: a small batch costs what a large one does."""
    first = block * self._steps_at_once
    steps = np.arange(first, first + self._steps_at_once)
    rows = np.tile(self.rows, len(steps))
    steps = np.repeat(steps, len(self.rows))
    return self.mixture.draw(steps, rows, self.batch_size)

  def _load_carefully(self, step: int) -> Batch:
    """Loads a batch with a damaged example row by row, to name it.

    A damaged example gives way to the next one of its source; all other rows
    are what they would have been.
    """
    drawn = self.draw(step)
    rows = [self._next_good_row(*row) for row in zip(*drawn, strict=True)]
    pixels, size, *columns = map(np.stack, zip(*rows, strict=True))
    return Batch(pixels, size, *columns, drawn.source)

  def _next_good_row(self, source: int, i: int, epoch: int):
    examples = self.examples[source]
    for j in range(len(examples)):
      number = (i + j) % len(examples)
      try:
        return self._load_row(examples, number, epoch)
      except UserError as error:
        self.damage.skip(error)
    raise UserError(f"got no readable example in source {source}")

  def _load_row(self, examples: Examples, i: int, epoch: int):
    """Loads one example: pixels uint8[F, H, W, 3], sizes int32[F, 2], text."""
    (images,), *text = self._read(examples, np.array([i]), np.array([epoch]))
    (pixels,) = self._black_canvas(1)
    size = self._place(examples, i, images, pixels)
    return pixels, size, *(column[0] for column in text)

  def _black_canvas(self, rows: int) -> np.ndarray:
    """Makes uint8[rows, F, H, W, 3]."""
    return np.zeros((rows, self.num_images, *self.canvas, 3), np.uint8)

  def _place(
    self,
    examples: Examples,
    i: int,
    encoded: Sequence[bytes | None],
    canvas: np.ndarray,
  ) -> np.ndarray:
    """Fills one example's canvas; returns its images' sizes int32[F, 2]."""
    try:
      return place_frames(encoded, canvas, self.resolution)
    except UserError as error:
      raise UserError(f"{examples.location(i)}: {error}") from error

  def _check_memory(self):
    """States what this host will hold, and refuses more than there is."""
    index = sum(e.nbytes for e in self.examples)
    pixels = self.num_images * self.canvas[0] * self.canvas[1]
    batch = len(self.rows) * pixels * 3
    buffers = batch * (_PREFETCH + self.num_threads + 1)
    available = psutil.virtual_memory().available
    _LOG.info(
      "input: %.1f MB of index, %.1f MB of buffers for %d rows of %d x %d "
      "pixels on this host; %.1f GB are free",
      index / 1e6,
      buffers / 1e6,
      len(self.rows),
      *self.canvas,
      available / 1e9,
    )
    if buffers > available:
      raise UserError(
        f"got input buffers of {buffers / 1e9:.1f} GB, expected at most the "
        f"{available / 1e9:.1f} GB that are free; lower config.batch_size or "
        "config.loader.num_threads"
      )

"""Batches from sources: reads in parallel, decodes after selection.

TensorFlow runs the pipeline and decodes images; it computes nothing else.

Shapes: B rows of the batch that this host loads, F frames, H x W pixels of the
canvas on which images of all sizes lie, P and S columns of the text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import psutil
import tensorflow as tf

from rt2_jax.batch import Batch
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.damage import Damage
from rt2_jax.input_pipeline.examples import Examples, Row
from rt2_jax.input_pipeline.frames import (
  canvas_for,
  load_frame_in_graph,
  load_frames,
)
from rt2_jax.input_pipeline.mixture import Mixture

_LOG = logging.getLogger(__name__)

_PREFETCH = 2  # batches decoded ahead of the step that uses them


class Loader:
  """Reads this host's rows of every global batch, from any step on."""

  def __init__(
    self,
    examples: Sequence[Examples],
    mixture: Mixture,
    batch_size: int,
    rows: np.ndarray,
    resolution: int,
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
      num_threads: batches that are read and decoded at the same time.
      max_skipped: damaged examples that may be left out, or replaced by the
        next one of their source; 0 makes the first one an error.

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
    self.damage = Damage(max_skipped)
    for each in examples:
      for loss in each.skipped:
        self.damage.skip(UserError(loss.problem), loss.examples)
    self.canvas = canvas_for(examples, resolution)
    self._check_memory()

  def batches(self, start: int, stop: int) -> Iterator[Batch]:
    """Yields the batches of steps start..stop-1, in order.

    Raises:
      UserError: an example that cannot be read or decoded, with its place,
        once more than `max_skipped` were met.
    """
    height, width = self.canvas
    row_count = len(self.rows)
    # Images, then the fields of `Batch` from text.
    types = (tf.string, tf.int32, tf.bool, tf.int32, tf.float32, tf.int32)
    pixels_type = tf.TensorSpec((height, width, 3), tf.uint8)
    size_type = tf.TensorSpec((2,), tf.int32)

    def load(step):
      encoded, *text = tf.numpy_function(self._read, [step], types)
      pixels, size = tf.map_fn(
        lambda image: load_frame_in_graph(image, self.canvas, self.resolution),
        tf.reshape(encoded, [-1]),
        fn_output_signature=(pixels_type, size_type),
      )
      pixels = tf.reshape(pixels, (row_count, -1, height, width, 3))
      size = tf.reshape(size, (row_count, -1, 2))
      # Frames of several sizes are made one by `load_frames`, row by row.
      one_size = tf.debugging.Assert(tf.reduce_all(size == size[:, :1]), [size])
      with tf.control_dependencies([one_size]):
        return pixels, tf.identity(size[:, 0]), *text

    steps = tf.data.Dataset.range(start, stop)
    dataset = steps.map(load, self.num_threads, deterministic=True)
    dataset = dataset.prefetch(_PREFETCH).with_options(_options())
    iterator = dataset.as_numpy_iterator()
    for step in range(start, stop):
      try:
        yield Batch(*next(iterator))
      except tf.errors.OpError:
        yield self._load_carefully(step)

  def _read(self, step: np.ndarray) -> tuple[np.ndarray, ...]:
    """Reads the encoded batch: images [B, F], text, source."""
    drawn = self._draw(int(step))
    rows: list[Row | None] = [None] * len(self.rows)
    for s, examples in enumerate(self.examples):
      mine = np.flatnonzero(drawn.source == s)
      requests = [examples.requests(int(drawn.index[b])) for b in mine]
      # One call per source, so that a remote storage sees all of it at once.
      data = iter(examples.storage.read([r for each in requests for r in each]))
      for b, each in zip(mine, requests, strict=True):
        own = [next(data) for _ in each]
        index, epoch = int(drawn.index[b]), int(drawn.epoch[b])
        rows[b] = examples.row(index, epoch, own)
    encoded, *text = zip(*rows, strict=True)
    encoded = np.asarray(encoded, object)
    return encoded, *map(np.stack, text), drawn.source

  def _draw(self, step: int):
    return self.mixture.draw(step, self.rows, self.batch_size)

  def _load_carefully(self, step: int) -> Batch:
    """A batch with a damaged example: row by row, so that it can be named.

    A damaged example gives way to the next one of its source; all other rows
    are what they would have been.
    """
    drawn = self._draw(step)
    rows = [
      self._next_good_row(int(s), int(i), int(epoch))
      for s, i, epoch in zip(*drawn, strict=True)
    ]
    pixels, size, text = zip(*rows, strict=True)
    columns = map(np.stack, zip(*text, strict=True))
    return Batch(np.stack(pixels), np.stack(size), *columns, drawn.source)

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
    """pixels uint8[F, H, W, 3], size int32[2] and the text of one example."""
    row = examples.row(i, epoch, examples.storage.read(examples.requests(i)))
    pixels, size = load_frames(
      row.images, examples.location(i), self.canvas, self.resolution
    )
    return pixels, size, row[1:]

  def _check_memory(self):
    """States what this host will hold, and refuses more than there is."""
    index = sum(e.source.index.nbytes for e in self.examples)
    frames = len(self.examples[0].requests(0))
    batch = len(self.rows) * frames * self.canvas[0] * self.canvas[1] * 3
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


def _options() -> tf.data.Options:
  options = tf.data.Options()
  options.autotune.enabled = False  # one owner of threads: `num_threads`
  return options

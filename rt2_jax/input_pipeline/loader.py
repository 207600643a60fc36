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
from rt2_jax.input_pipeline.examples import Examples, Row
from rt2_jax.input_pipeline.mixture import Mixture
from rt2_jax.input_pipeline.records import Record
from rt2_jax.input_pipeline.rlds import StepSource
from rt2_jax.input_pipeline.web import WebExample, WebSource, parse

_LOG = logging.getLogger(__name__)
tf.config.set_visible_devices([], "GPU")  # accelerators belong to JAX

_PREFETCH = 2  # batches decoded ahead of the step that uses them
_MIN_SIDE, _MAX_SIDE = 8, 8192  # pixels; outside them an image is a mistake


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
    """Decodes one image per source to learn the size of the canvas.

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
      UserError: an image cannot be read, more was left out already than may
        be, or the buffers do not fit into memory.
    """
    self.examples = examples
    self.mixture = mixture
    self.batch_size = batch_size
    self.rows = np.asarray(rows)
    self.num_threads = num_threads
    self.max_skipped = max_skipped
    self.skipped: list[str] = []
    for each in examples:
      for problem in each.skipped:
        self._skip(UserError(problem))
    self.canvas = self._canvas(resolution)
    self._check_memory()

  def batches(self, start: int, stop: int) -> Iterator[Batch]:
    """Yields the batches of steps start..stop-1, in order.

    Raises:
      UserError: an example that cannot be read or decoded, with its place,
        once more than `max_skipped` were met.
    """
    height, width = self.canvas
    row_count = len(self.rows)
    # Images and whether they may shrink, then the fields of `Batch` from text.
    types = (tf.string, tf.bool)
    types += (tf.int32, tf.bool, tf.int32, tf.float32, tf.int32)
    pixels_type = tf.TensorSpec((height, width, 3), tf.uint8)
    size_type = tf.TensorSpec((2,), tf.int32)

    def load(step):
      images, shrinks, *text = tf.numpy_function(self._read, [step], types)
      pixels, size = tf.map_fn(
        lambda x: _fit(*x, height, width),
        (tf.reshape(images, [-1]), tf.reshape(shrinks, [-1])),
        fn_output_signature=(pixels_type, size_type),
      )
      pixels = tf.reshape(pixels, (row_count, -1, height, width, 3))
      size = tf.reshape(size, (row_count, -1, 2))[:, 0]
      return pixels, size, *text

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
    """The encoded batch: images and flags [B, F], text, source."""
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
    images, *text = zip(*rows, strict=True)
    images = np.asarray(images, object)
    shrinks = np.array([examples.shrinks for examples in self.examples])
    flags = np.broadcast_to(shrinks[drawn.source][:, None], images.shape)
    return images, flags, *map(np.stack, text), drawn.source

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
        self._skip(error)
    raise UserError(f"got no readable example in source {source}")

  def _load_row(self, examples: Examples, i: int, epoch: int):
    """pixels uint8[F, H, W, 3], size int32[2] and the text of one example."""
    where = examples.location(i)
    row = examples.row(i, epoch, examples.storage.read(examples.requests(i)))
    frames = []
    for image in row.images:
      pixels = decode_image(image, where)
      height, width = pixels.shape[:2]
      fits = height <= self.canvas[0] and width <= self.canvas[1]
      if not (fits or examples.shrinks):
        raise UserError(
          f"{where}: got an image of {height} x {width} pixels, expected at "
          f"most {self.canvas[0]} x {self.canvas[1]} like its source's first"
        )
      frames.append(place(pixels, *self.canvas))
    placed, sizes = zip(*frames, strict=True)
    return np.stack(placed), np.asarray(sizes[0]), row[1:]

  def _skip(self, error: UserError):
    """Counts and reports a damaged example, or raises what is wrong with it."""
    if str(error) in self.skipped:
      return  # met again in a later epoch
    if len(self.skipped) >= self.max_skipped:
      raise error
    self.skipped.append(str(error))
    count = len(self.skipped)
    if count & (count - 1):
      return  # the 1st, 2nd, 4th, 8th … are news enough
    _LOG.warning(
      "skipped %d of at most %d examples, such as %s",
      count,
      self.max_skipped,
      error,
    )

  def _canvas(self, resolution: int) -> tuple[int, int]:
    """(H, W) that holds every robot image whole."""
    sizes = [(resolution, resolution)]
    for examples in self.examples:
      if not examples.shrinks:
        (image, *_) = examples.storage.read(examples.requests(0))
        sizes.append(decode_image(image, examples.location(0)).shape[:2])
    height, width = np.max(sizes, 0)
    return int(height), int(width)

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


def decode_image(image: bytes, where: str) -> np.ndarray:
  """JPEG or PNG bytes to uint8[H, W, 3].

  Raises:
    UserError: bytes that are no image, or an image of an unlikely size; says
      `where` it lies.
  """
  try:
    pixels = _decode(image).numpy()
  except tf.errors.InvalidArgumentError as error:
    raise UserError(
      f"{where}: got {len(image)} bytes that do not decode as an image, "
      "expected JPEG or PNG; repair or remove this example"
    ) from error
  height, width = pixels.shape[:2]
  if min(height, width) < _MIN_SIDE or max(height, width) > _MAX_SIDE:
    raise UserError(
      f"{where}: got an image of {height} x {width} pixels, expected sides of "
      f"{_MIN_SIDE} to {_MAX_SIDE}; repair or remove this example"
    )
  return pixels


def read_steps(
  source: StepSource, batch_size: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, list[str], np.ndarray]]:
  """Steps of a source once, in order, for evaluation.

  Args:
    source: what to read.
    batch_size: b, but for the last chunk.
    limit: how many steps, evenly spread over the source; None: all.

  Yields:
    images uint8[b, F, H, W, 3], b instructions, actions float32[b, D].
  """
  for numbers in _chunks(len(source), batch_size, limit):
    images = [_read_images(source, i) for i in numbers]
    instructions = [source.instruction(i) for i in numbers]
    yield np.stack(images), instructions, source.index.action[numbers]


def read_questions(
  source: WebSource, resolution: int, batch_size: int, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, list[WebExample]]]:
  """Examples of a web source once, in order, for evaluation.

  Args:
    source: what to read.
    resolution: of the encoder; larger images are made smaller, as in training.
    batch_size: b, but for the last chunk.
    limit: how many examples, evenly spread over the source; None: all.

  Yields:
    images uint8[b, R, R, 3] on a canvas, their sizes int32[b, 2], and b
    examples.
  """
  for numbers in _chunks(len(source), batch_size, limit):
    examples, images, sizes = [], [], []
    for i in numbers:
      (request,) = source.requests(i)
      (data,) = source.storage.read([request])
      record = Record(request.path, request.offset, memoryview(data))
      examples.append(parse(record))
      pixels = decode_image(examples[-1].image, source.location(i))
      image, size = place(pixels, resolution, resolution)
      images.append(image)
      sizes.append(size)
    yield np.stack(images), np.stack(sizes), examples


def _chunks(
  size: int, batch_size: int, limit: int | None
) -> Iterator[np.ndarray]:
  """Numbers below `size`, at most `limit` of them, evenly spread."""
  count = min(size, limit or size)
  numbers = np.arange(count) * size // count
  for first in range(0, count, batch_size):
    yield numbers[first : first + batch_size]


def _read_images(source: StepSource, i: int) -> np.ndarray:
  """uint8[F, H, W, 3], as they were recorded."""
  frames = source.storage.read(source.requests(i))
  return np.stack([decode_image(f, source.location(i)) for f in frames])


def _decode(image) -> tf.Tensor:
  return tf.io.decode_image(image, channels=3, expand_animations=False)


def _fit(
  image, shrinks, height: int, width: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Decodes and places an image in the graph, where errors name no place."""
  pixels = _decode(image)
  size = tf.shape(pixels)[:2]
  is_likely = (tf.reduce_min(size) >= _MIN_SIDE) & (
    tf.reduce_max(size) <= _MAX_SIDE
  )
  fits = tf.reduce_all(size <= [height, width])
  with tf.control_dependencies(
    [tf.debugging.Assert(is_likely & (fits | shrinks), [size])]
  ):
    return place(tf.identity(pixels), height, width)


def place(pixels, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
  """Lays an image on the canvas, top left, made smaller if it is larger.

  Returns:
    uint8[height, width, 3], black outside the image, and its size int32[2].
  """
  size = tf.shape(pixels)[:2]
  scale = tf.reduce_min(tf.cast([height, width], tf.float32) / _floats(size))
  if scale < 1.0:
    size = tf.maximum(tf.cast(_floats(size) * scale, tf.int32), 1)
    smaller = tf.image.resize(pixels, size, "area")  # shrinks without gaps
    pixels = tf.saturate_cast(tf.round(smaller), tf.uint8)
  padded = tf.image.pad_to_bounding_box(pixels, 0, 0, height, width)
  return tf.ensure_shape(padded, (height, width, 3)), size


def _floats(size: tf.Tensor) -> tf.Tensor:
  return tf.cast(size, tf.float32)


def _options() -> tf.data.Options:
  options = tf.data.Options()
  options.autotune.enabled = False  # one owner of threads: `num_threads`
  return options

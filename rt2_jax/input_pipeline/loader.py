"""Batches from sources: reads in parallel, decodes after selection.

TensorFlow runs the pipeline and decodes JPEG; it computes nothing else. Text
becomes ids once per distinct instruction, before the first batch, so that a
prompt that is too long stops the run at its start.

Shapes: B rows of this host's slice of the batch, F frames, H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rt2_jax.actions import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.input_pipeline.mixture import Mixture
from rt2_jax.input_pipeline.rlds import StepSource
from rt2_jax.prompt import Prompt

_PREFETCH = 2  # batches decoded ahead of the step that uses them


class Row(NamedTuple):
  """One example before its images are decoded; fields as in `Batch`."""

  images: tuple[bytes, ...]
  prefix: np.ndarray
  mask_input: np.ndarray
  suffix: np.ndarray
  mask_loss: np.ndarray


class RobotExamples:
  """A robot source as training examples: prompt in, action tokens out."""

  def __init__(
    self, source: StepSource, tokenizer: ActionTokenizer, prompt: Prompt
  ):
    """Tokenizes every distinct instruction; raises if one is too long."""
    self.source = source
    self._tokenizer = tokenizer
    self._prompt = prompt
    self._prefixes = {
      text: prompt.robot_prefix(text) for text in source.index.texts
    }

  def __len__(self) -> int:
    return len(self.source)

  def row(self, i: int) -> Row:
    step = self.source.read(i)
    prefix, mask_input = self._prefixes[step.instruction]
    suffix, mask_loss = self._prompt.suffix(self._tokenizer.encode(step.action))
    return Row(step.images, prefix, mask_input, suffix, mask_loss)

  def location(self, i: int) -> str:
    return self.source.location(i)


@dataclasses.dataclass(frozen=True)
class Loader:
  """This host's slice of every global batch, from any step on.

  Attributes:
    examples: the sources of the mixture.
    mixture: which example sits at (step, row).
    batch_size: rows of the global batch.
    rows: rows of the global batch that this host loads.
    num_threads: batches that are read and decoded at the same time.
  """

  examples: Sequence[RobotExamples]
  mixture: Mixture
  batch_size: int
  rows: range
  num_threads: int = 2

  def batches(self, start: int, stop: int) -> Iterator[Batch]:
    """Yields the batches of steps start..stop-1, in order.

    Raises:
      ValueError: an image that cannot be read or decoded, with its place.
    """
    height, width, frames = self._image_shape()

    def load(step):
      types = (tf.string, tf.int32, tf.bool, tf.int32, tf.float32, tf.int32)
      images, *text = tf.numpy_function(self._read, [step], types)
      shape = (len(self.rows), frames)
      pixels = tf.map_fn(
        _decode,
        tf.reshape(tf.ensure_shape(images, shape), [-1]),
        fn_output_signature=tf.TensorSpec((height, width, 3), tf.uint8),
      )
      return tf.reshape(pixels, (*shape, height, width, 3)), *text

    steps = tf.data.Dataset.range(start, stop)
    dataset = steps.map(load, self.num_threads, deterministic=True)
    dataset = dataset.prefetch(_PREFETCH).with_options(_options())
    iterator = dataset.as_numpy_iterator()
    for step in range(start, stop):
      try:
        yield Batch(*next(iterator))
      except tf.errors.OpError as error:
        self._raise_clear_error(step)
        raise AssertionError(f"step {step} fails only in tf.data") from error

  def _read(self, step: np.ndarray) -> tuple[np.ndarray, ...]:
    source, index = self._draw(int(step))
    rows = [
      self.examples[s].row(int(i)) for s, i in zip(source, index, strict=True)
    ]
    images, *text = zip(*rows, strict=True)
    return np.asarray(images, object), *map(np.stack, text), source

  def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    return self.mixture.draw(step, np.asarray(self.rows), self.batch_size)

  def _image_shape(self) -> tuple[int, int, int]:
    """(H, W, F), the same in all sources; raises ValueError otherwise."""
    shapes = {}
    for examples in self.examples:
      images = examples.row(0).images
      pixels = decode_image(images[0], examples.location(0))
      shapes[(*pixels.shape[:2], len(images))] = examples.location(0)
    if len(shapes) > 1:
      listed = "; ".join(f"{s} in {where}" for s, where in shapes.items())
      raise ValueError(
        f"got images of different (height, width, frames): {listed}; expected "
        "one size, use sources of one size in a mixture"
      )
    return next(iter(shapes))

  def _raise_clear_error(self, step: int):
    """Replays a failed step in Python to name the example at fault."""
    height, width, _ = self._image_shape()
    for s, i in zip(*self._draw(step), strict=True):
      where = self.examples[s].location(i)
      for image in self.examples[s].row(i).images:
        shape = decode_image(image, where).shape
        if shape[:2] != (height, width):
          raise ValueError(
            f"{where}: got an image of {shape[0]} x {shape[1]} pixels, "
            f"expected {height} x {width} like the others"
          )


def decode_image(image: bytes, where: str) -> np.ndarray:
  """JPEG or PNG bytes to uint8[H, W, 3]; errors say `where` it came from."""
  try:
    return _decode(image).numpy()
  except tf.errors.InvalidArgumentError as error:
    raise ValueError(
      f"{where}: got {len(image)} bytes that do not decode as an image, "
      "expected JPEG or PNG; repair or remove this episode"
    ) from error


def read_steps(
  source: StepSource, batch_size: int
) -> Iterator[tuple[np.ndarray, list[str], np.ndarray]]:
  """Every step of a source once, in order, for evaluation.

  Yields:
    images uint8[b, F, H, W, 3], b instructions, actions float32[b, D], with
    b = batch_size but for the last.
  """
  for first in range(0, len(source), batch_size):
    numbers = range(first, min(first + batch_size, len(source)))
    steps = [source.read(i) for i in numbers]
    images = [
      [decode_image(image, source.location(i)) for image in step.images]
      for i, step in zip(numbers, steps, strict=True)
    ]
    yield (
      np.asarray(images),
      [step.instruction for step in steps],
      np.stack([step.action for step in steps]),
    )


def _decode(image: tf.Tensor | bytes) -> tf.Tensor:
  return tf.io.decode_image(image, channels=3, expand_animations=False)


def _options() -> tf.data.Options:
  options = tf.data.Options()
  options.autotune.enabled = False  # one owner of threads: `num_threads`
  return options

"""Sources as training examples: prompt and answer in ids, images encoded.

Robot instructions become ids when a source is opened, so that one that is too
long stops the run at its start.

Shapes: F frames, P prefix and S suffix columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rt2_jax.actions import ActionTokenizer
from rt2_jax.input_pipeline import records, web
from rt2_jax.input_pipeline.rlds import StepSource
from rt2_jax.input_pipeline.storage import Request, Storage
from rt2_jax.prompt import Prompt


class Row(NamedTuple):
  """One example before its images are decoded; text as in `Batch`."""

  images: tuple[bytes, ...]
  prefix: np.ndarray
  mask_input: np.ndarray
  suffix: np.ndarray
  mask_loss: np.ndarray


class Examples(Protocol):
  """A source as training examples."""

  storage: Storage
  shrinks: bool  # images larger than the canvas are made smaller

  def __len__(self) -> int: ...

  def requests(self, i: int) -> list[Request]:
    """What must be read for example `i`."""

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    """Example `i` from the bytes of its requests."""

  def location(self, i: int) -> str:
    """Where example `i` lies, for error messages."""


class RobotExamples:
  """Robot steps: instruction in, action tokens out."""

  shrinks = False  # acting sees whole images, so training must too

  def __init__(
    self, source: StepSource, tokenizer: ActionTokenizer, prompt: Prompt
  ):
    """Tokenizes every distinct instruction.

    Raises:
      ValueError: one is too long for the prompt, or actions are.
    """
    self.source = source
    self.storage = source.storage
    self.requests = source.requests
    self.location = source.location
    self._tokenizer = tokenizer
    self._prompt = prompt
    self._prefixes = {
      text: prompt.robot_prefix(text) for text in source.index.texts
    }
    prompt.suffix([0] * tokenizer.answer_length)  # raises if it is too short

  def __len__(self) -> int:
    return len(self.source)

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    del epoch  # a step has one action
    prefix = self._prefixes[self.source.instruction(i)]
    action = self._tokenizer.encode(self.source.index.action[i])
    return Row(tuple(data), *prefix, *self._prompt.suffix(action))


class WebExamples:
  """Image-text pairs: question in, one of the answers out."""

  shrinks = True

  def __init__(self, source: web.WebSource, prompt: Prompt, num_frames: int):
    self.source = source
    self.storage = source.storage
    self.requests = source.requests
    self.location = source.location
    self._prompt = prompt
    self._num_frames = num_frames

  def __len__(self) -> int:
    return len(self.source)

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    """Each epoch takes the next answer. A model of F frames sees F copies."""
    (request,) = self.requests(i)
    record = records.Record(request.path, request.offset, memoryview(data[0]))
    example = web.parse(record)
    answer = example.answers[epoch % len(example.answers)]
    ids = self._prompt.tokenizer.encode(answer)
    images = (example.image,) * self._num_frames
    try:
      prefix = self._prompt.prefix(example.question)
      return Row(images, *prefix, *self._prompt.suffix(ids))
    except ValueError as error:
      raise ValueError(f"{self.location(i)}: {error}") from error

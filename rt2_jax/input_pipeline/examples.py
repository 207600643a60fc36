"""Sources as training examples: prompt and answer in ids, images encoded.

Texts that are too long for the prompt are known when a source is opened, so
that they stop the run at its start.

Shapes: n examples of a batch, F images, P prefix and S suffix positions, H
actions of a chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.byte_ranges import Request, Storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import bounds_fit, records, unusable, web
from rt2_jax.input_pipeline.robot_text import (
  RobotText,
  Texts,
  check_plans,
  lost_steps,
  report_blank,
)
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.input_pipeline.step_index import StepSource
from rt2_jax.input_pipeline.unusable import Unusable
from rt2_jax.observation import ONE_CAMERA, ObservationSpec
from rt2_jax.prompt import Prompt


class Rows(NamedTuple):
  """n examples before their images are decoded; text as in `Batch`.

  Attributes:
    images: F files of each example, None where a camera is missing.
    prefix: int32[n, P].
    mask_input: bool[n, P].
    suffix: int32[n, S].
    mask_loss: float32[n, S].
  """

  images: Sequence[Sequence[bytes | None]]
  prefix: np.ndarray
  mask_input: np.ndarray
  suffix: np.ndarray
  mask_loss: np.ndarray


class Examples(Protocol):
  """A source as training examples."""

  storage: Storage
  largest_image: tuple[int, int]  # (height, width) that the canvas must hold
  skipped: Sequence[Unusable]  # what was left out
  nbytes: int  # in memory

  def __len__(self) -> int: ...

  def requests(self, numbers: Sequence[int]) -> list[list[Request]]:
    """Lists the reads for each of n examples."""

  def rows(
    self,
    numbers: np.ndarray,
    epochs: np.ndarray,
    data: Sequence[Sequence[bytes]],
  ) -> Rows:
    """Makes n examples from the bytes of their requests.

    Args:
      numbers: int64[n], of the examples.
      epochs: int64[n], passes over the source that were finished before.
      data: bytes of each example's requests.
    """

  def location(self, i: int) -> str:
    """Locates example `i`, for error messages."""


class RobotExamples:
  """Robot steps: instruction in, action tokens out, after a plan if any."""

  def __init__(
    self,
    source: StepSource,
    action_tokenizer: ActionTokenizer,
    prompt: Prompt,
    spec: ObservationSpec = ONE_CAMERA,
    state_dropout: float = 0.0,
    max_skipped: int = 0,
  ):
    """Tokenizes every distinct instruction and plan.

    Steps whose instruction or plan cannot be written are left out.

    Args:
      source: all steps.
      action_tokenizer: writes actions.
      prompt: says how long texts may be.
      spec: the parts of an observation that the model reads.
      state_dropout: fraction of the examples whose prompt holds no state.
      max_skipped: steps that may be left out.

    Raises:
      UserError: more have a text that is too long, or actions are; or the data
        have plans and the prompt has not, or the other way round.
    """
    check_plans(source, prompt)
    index = source.index
    texts = Texts(index, action_tokenizer, prompt, spec)
    kept, lost = np.ones(len(index), bool), []
    for column, problems in (
      (index.text, texts.unfit_instructions),
      (index.plan, texts.unfit_plans),
    ):
      for number, problem in problems.items():
        steps = np.flatnonzero((column == number) & kept)
        kept[steps] = False
        lost += lost_steps(source, steps, problem)
    unusable.tolerate(lost, max_skipped)
    self.skipped = (*index.damaged, *lost)
    self.source = source.only(kept) if lost else source
    if not kept.any():
      raise UserError(f"got no step that fits the prompt: {lost[0].problem}")
    self.storage = source.storage
    self.largest_image = source.largest_image
    self.requests = self.source.requests
    self.location = self.source.location
    self._horizon = action_tokenizer.horizon
    self._text = RobotText(
      self.source, texts, action_tokenizer, prompt, spec, state_dropout
    )
    self._has_image = [c not in spec.missing for c in spec.cameras]
    self._has_image = np.repeat(self._has_image, spec.history).tolist()

  def __len__(self) -> int:
    return len(self.source)

  @property
  def nbytes(self) -> int:
    """Bytes of the index and of the bins."""
    return self.source.index.nbytes + self._text.nbytes

  def recorded_chunks(self, numbers: Sequence[int]) -> np.ndarray:
    """Reads the actions of n steps, float32[n, H, D] in physical units."""
    return self.source.chunks(numbers, self._horizon)

  def rows(
    self,
    numbers: np.ndarray,
    epochs: np.ndarray,
    data: Sequence[Sequence[bytes]],
  ) -> Rows:
    """Makes n examples, as `Examples.rows`."""
    prefixes = self._text.prefixes(numbers, epochs)
    return Rows(self._images(data), *prefixes, *self._text.suffixes(numbers))

  def _images(
    self, data: Sequence[Sequence[bytes]]
  ) -> Sequence[Sequence[bytes | None]]:
    """Puts images into the model's order, None for a missing camera."""
    if all(self._has_image):
      return data
    files = map(iter, data)
    return [
      [next(row) if has else None for has in self._has_image] for row in files
    ]


def open_robot(
  config: SourceConfig,
  split: str,
  action_tokenizer: ActionTokenizer,
  prompt: Prompt,
  spec: ObservationSpec,
  index_folder: str,
  max_skipped: int,
  state_dropout: float = 0.0,
  keep_numbers: bool = True,
) -> RobotExamples:
  """Opens one split of a robot source, for training and evaluation alike.

  Args:
    config: the source.
    split: which of its splits.
    action_tokenizer: writes its actions.
    prompt: writes its instructions.
    spec: what the model reads of this source's robot.
    index_folder: where indexes are kept; "" keeps none.
    max_skipped: damaged examples that may be left out.
    state_dropout: as in `RobotExamples`; evaluation drops none.
    keep_numbers: whether actions and states stay in memory, for evaluation.

  Raises:
    UserError: bad data, or text that is too long.
  """
  source = open_source(
    config, split, spec, index_folder or None, max_skipped=max_skipped
  )
  report_blank(source, config.path)
  bounds_fit.warn(config.path, action_tokenizer.space, source.index.action)
  examples = RobotExamples(
    source, action_tokenizer, prompt, spec, state_dropout, max_skipped
  )
  if not keep_numbers:
    examples.source.release_numbers()
  return examples


def open_web(
  config: web.WebConfig,
  split: str,
  prompt: Prompt,
  spec: ObservationSpec,
  index_folder: str,
  max_skipped: int,
) -> WebExamples:
  """Opens one split of a web source; arguments as in `open_robot`."""
  source = web.open_source(
    dataclasses.replace(config, split=split),
    prompt.tokenizer,
    index_folder or None,
    max_skipped=max_skipped,
  )
  return WebExamples(source, prompt, spec, max_skipped)


class WebExamples:
  """Image-text pairs: question in, one of the answers out."""

  largest_image = (0, 0)  # any size: larger ones are resized on the host

  def __init__(
    self,
    source: web.WebSource,
    prompt: Prompt,
    spec: ObservationSpec = ONE_CAMERA,
    max_skipped: int = 0,
  ):
    """Leaves out the examples whose text is too long.

    Args:
      source: all examples.
      prompt: says how long texts may be.
      spec: what the model reads. A picture stands for each frame of the first
        camera; the others are missing.
      max_skipped: examples that may be left out.

    Raises:
      UserError: more are too long; the first are named.
    """
    fits = (source.index.question_length <= prompt.prefix_length) & (
      source.index.answer_length <= prompt.suffix_length
    )
    too_long = [_too_long(source, i, prompt) for i in np.flatnonzero(~fits)]
    unusable.tolerate(too_long, max_skipped)
    self.source = web.WebSource(source.storage, source.index.only(fits))
    self.storage = source.storage
    self.skipped = (*source.index.damaged, *too_long)
    self.nbytes = self.source.index.nbytes
    self.requests = self.source.requests
    self.location = self.source.location
    self._prompt = prompt
    self._spec = spec

  def __len__(self) -> int:
    return len(self.source)

  def rows(
    self,
    numbers: np.ndarray,
    epochs: np.ndarray,
    data: Sequence[Sequence[bytes]],
  ) -> Rows:
    """Makes n examples, as `Examples.rows`.

    Each epoch takes the next answer of an example. Examples begin with
    different ones, so that a run of less than an epoch meets all of them.
    """
    examples = self.parse(numbers, data)
    turns = (np.asarray(numbers, np.int64) + epochs).tolist()
    encode = self._prompt.tokenizer.encode
    answers = [
      self._prompt.suffix(encode(e.answers[turn % len(e.answers)]))
      for e, turn in zip(examples, turns, strict=True)
    ]
    shown = self._spec.history
    missing = (None,) * (self._spec.num_images - shown)
    return Rows(
      [(e.image,) * shown + missing for e in examples],
      *self._prompt.prefixes([e.question for e in examples]),
      *map(np.stack, zip(*answers, strict=True)),
    )

  def parse(
    self, numbers: Sequence[int], data: Sequence[Sequence[bytes]]
  ) -> list[web.WebExample]:
    """Parses examples from the bytes of their requests."""
    pairs = zip(self.requests(numbers), data, strict=True)
    return [
      web.parse(records.Record(where.path, where.offset, memoryview(content)))
      for (where,), (content,) in pairs
    ]


def _too_long(source: web.WebSource, i: int, prompt: Prompt) -> Unusable:
  """Names the text of example `i` that is too long, and the remedy."""
  for what, tokens, room, field in (
    (
      "a prompt",
      source.index.question_length[i],
      prompt.prefix_length,
      "prefix",
    ),
    (
      "an answer",
      source.index.answer_length[i],
      prompt.suffix_length,
      "suffix",
    ),
  ):
    if tokens > room:
      return Unusable(
        f"{source.location(i)}: got {what} of {tokens} tokens, expected at "
        f"most {room}; raise config.prompt.{field}_length"
      )
  raise AssertionError(f"example {i} fits")

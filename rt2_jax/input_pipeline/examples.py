"""Sources as training examples: prompt and answer in ids, images encoded.

Texts that are too long for the prompt are known when a source is opened, so
that they stop the run at its start.

Shapes: F frames, P prefix and S suffix columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rt2_jax.actions import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import datasets, records, unusable, web
from rt2_jax.input_pipeline.rlds import StepSource
from rt2_jax.input_pipeline.unusable import Unusable
from rt2_jax.prompt import Prompt
from rt2_jax.storage import Request, Storage


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
  largest_image: tuple[int, int]  # (height, width) that the canvas must hold
  skipped: Sequence[Unusable]  # what was left out

  def __len__(self) -> int: ...

  def requests(self, i: int) -> list[Request]:
    """What must be read for example `i`."""

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    """Example `i` from the bytes of its requests."""

  def location(self, i: int) -> str:
    """Where example `i` lies, for error messages."""


class RobotExamples:
  """Robot steps: instruction in, action tokens out, after a plan if any."""

  def __init__(
    self,
    source: StepSource,
    tokenizer: ActionTokenizer,
    prompt: Prompt,
    max_skipped: int = 0,
  ):
    """Tokenizes every distinct instruction and plan.

    Steps whose instruction or plan cannot be written are left out.

    Args:
      source: all steps.
      tokenizer: writes actions.
      prompt: says how long texts may be.
      max_skipped: steps that may be left out.

    Raises:
      UserError: more have a text that is too long, or actions are; or the data
        have plans and the prompt has not, or the other way round.
    """
    _check_plans(source, prompt)
    prompt.suffix([0] * tokenizer.answer_length)  # raises if it is too short
    index = source.index
    self._prefixes, unfit = _written(index.texts, prompt.robot_prefix)

    def write_plan(plan: str) -> np.ndarray:
      ids = prompt.plan_ids(plan)
      prompt.suffix([0] * (len(ids) + tokenizer.answer_length))
      return ids

    self._plans, unfit_plans = _written(index.plans, write_plan)
    self._plans[""] = np.zeros(0, np.int32)
    kept, lost = np.ones(len(index), bool), []
    for column, problems in (index.text, unfit), (index.plan, unfit_plans):
      for number, problem in problems.items():
        steps = np.flatnonzero((column == number) & kept)
        kept[steps] = False
        lost += _lost_steps(source, steps, problem)
    unusable.tolerate(lost, max_skipped)
    self.skipped = (*index.damaged, *lost)
    self.source = source.only(kept) if lost else source
    if not kept.any():
      raise UserError(f"got no step that fits the prompt: {lost[0].problem}")
    self.storage = source.storage
    self.largest_image = source.largest_image
    self.requests = self.source.requests
    self.location = self.source.location
    # Once: of a single step it takes most of the time that its text takes.
    self._bins = tokenizer.to_bins(self.source.index.action).astype(np.uint8)
    self._tokenizer = tokenizer
    self._prompt = prompt

  def __len__(self) -> int:
    return len(self.source)

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    del epoch  # a step has one action
    prefix = self._prefixes[self.source.instruction(i)]
    action = self._tokenizer.encode_bins(self._bins[i])
    answer = np.concatenate([self._plans[self.source.plan(i)], action])
    return Row(tuple(data), *prefix, *self._prompt.suffix(answer))


def open_robot(
  config: datasets.SourceConfig,
  split: str,
  tokenizer: ActionTokenizer,
  prompt: Prompt,
  num_frames: int,
  index_folder: str,
  max_skipped: int,
) -> RobotExamples:
  """Opens one split of a robot source, for training and evaluation alike.

  Args:
    config: the source.
    split: which of its splits.
    tokenizer: writes its actions.
    prompt: writes its instructions.
    num_frames: F, images that the model sees.
    index_folder: where indexes are kept; "" keeps none.
    max_skipped: damaged examples that may be left out.

  Raises:
    UserError: bad data, or text that is too long.
  """
  source = datasets.open_source(
    config, split, num_frames, index_folder or None, max_skipped=max_skipped
  )
  return RobotExamples(source, tokenizer, prompt, max_skipped)


def open_web(
  config: web.WebConfig,
  split: str,
  prompt: Prompt,
  num_frames: int,
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
  return WebExamples(source, prompt, num_frames, max_skipped)


def _written(
  texts: Sequence[str], write: Callable[[str], Any]
) -> tuple[dict[str, Any], dict[int, UserError]]:
  """Each text as ids; and, by its number, what is wrong with those left out."""
  ids, unfit = {}, {}
  for number, text in enumerate(texts):
    try:
      ids[text] = write(text)
    except UserError as problem:
      unfit[number] = problem
  return ids, unfit


def _lost_steps(
  source: StepSource, steps: np.ndarray, problem: UserError
) -> list[Unusable]:
  """Steps of one text that cannot be used; none where no step has it."""
  if not len(steps):
    return []
  line = f"{source.location(int(steps[0]))}: {problem} ({len(steps)} steps)"
  return [Unusable(line, examples=len(steps))]


def _check_plans(source: StepSource, prompt: Prompt):
  """
  Raises:
    UserError: only one of the two has plans.
  """
  count = len(source.index.plans)
  if bool(count) != bool(prompt.plan_length):
    raise UserError(
      f"{source.location(0)}: got data with {count} different plans, expected "
      f"{'some' if prompt.plan_length else 'none'} with config.prompt."
      f"plan_length = {prompt.plan_length}; change it, or use another dataset"
    )


class WebExamples:
  """Image-text pairs: question in, one of the answers out."""

  largest_image = (0, 0)  # any size: larger ones are resized on the host

  def __init__(
    self,
    source: web.WebSource,
    prompt: Prompt,
    num_frames: int,
    max_skipped: int = 0,
  ):
    """Leaves out the examples whose text is too long.

    Args:
      source: all examples.
      prompt: says how long texts may be.
      num_frames: F, images that the model sees.
      max_skipped: examples that may be left out.

    Raises:
      UserError: more are too long; the first are named.
    """
    fits = (source.index.question <= prompt.prefix_length) & (
      source.index.answer <= prompt.suffix_length
    )
    too_long = [_too_long(source, i, prompt) for i in np.flatnonzero(~fits)]
    unusable.tolerate(too_long, max_skipped)
    self.source = web.WebSource(source.storage, source.index.only(fits))
    self.storage = source.storage
    self.skipped = (*source.index.damaged, *too_long)
    self.requests = self.source.requests
    self.location = self.source.location
    self._prompt = prompt
    self._num_frames = num_frames

  def __len__(self) -> int:
    return len(self.source)

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    """Each epoch takes the next answer. A model of F frames sees F copies."""
    example = self.parse(i, data)
    answer = example.answers[epoch % len(example.answers)]
    ids = self._prompt.tokenizer.encode(answer)
    images = (example.image,) * self._num_frames
    prefix = self._prompt.prefix(example.question)
    return Row(images, *prefix, *self._prompt.suffix(ids))

  def parse(self, i: int, data: Sequence[bytes]) -> web.WebExample:
    """Parses example `i` from the bytes of its request."""
    (request,) = self.requests(i)
    record = records.Record(request.path, request.offset, memoryview(data[0]))
    return web.parse(record)


def _too_long(source: web.WebSource, i: int, prompt: Prompt) -> Unusable:
  """Which text of example `i` is too long, and what to do about it."""
  for what, tokens, room, field in (
    ("a prompt", source.index.question[i], prompt.prefix_length, "prefix"),
    ("an answer", source.index.answer[i], prompt.suffix_length, "suffix"),
  ):
    if tokens > room:
      return Unusable(
        f"{source.location(i)}: got {what} of {tokens} tokens, expected at "
        f"most {room}; raise config.prompt.{field}_length"
      )
  raise AssertionError(f"example {i} fits")

"""Sources as training examples: prompt and answer in ids, images encoded.

Texts that are too long for the prompt are known when a source is opened, so
that they stop the run at its start.

Shapes: F images, P prefix and S suffix positions, H actions of a chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rt2_jax.actions import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import records, unusable, web
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.input_pipeline.step_index import StepSource
from rt2_jax.input_pipeline.unusable import Unusable
from rt2_jax.observation import ONE_CAMERA, ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.storage import Request, Storage


class Row(NamedTuple):
  """One example before its images are decoded; text as in `Batch`.

  `images` has F files, None where a camera is missing.
  """

  images: tuple[bytes | None, ...]
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
    """Lists the reads for example `i`."""

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    """Makes example `i` from the bytes of its requests."""

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
      spec: what the model reads, as the source was opened with.
      state_dropout: fraction of the examples whose prompt holds no state.
      max_skipped: steps that may be left out.

    Raises:
      UserError: more have a text that is too long, or actions are; or the data
        have plans and the prompt has not, or the other way round.
    """
    _check_plans(source, prompt)
    prompt.suffix(
      [0] * action_tokenizer.answer_length
    )  # raises if it is too short
    index = source.index
    longest = prompt.state_ids(spec.state, np.zeros(index.state.shape[1]))

    def write_instruction(text: str) -> Any:
      if spec.state is None:
        return prompt.robot_prefix(text)
      around = prompt.around_state(text)
      prompt.with_state(around, longest)  # raises if it is too long
      return around

    self._prefixes, unfit = _written(index.texts, write_instruction)

    def write_plan(plan: str) -> np.ndarray:
      ids = prompt.plan_ids(plan)
      prompt.suffix([0] * (len(ids) + action_tokenizer.answer_length))
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
    self._action_tokenizer = action_tokenizer
    # Once: of a single step it takes most of the time that its text takes.
    self._bins = action_tokenizer.to_bins(self.recorded_chunks()).astype(
      np.uint8
    )
    self._states = prompt.state_ids(spec.state, self.source.index.state)
    self._dropout = state_dropout
    self._spec = spec
    self._prompt = prompt

  def __len__(self) -> int:
    return len(self.source)

  def recorded_chunks(self) -> np.ndarray:
    """Reads the actions of all steps, float32[N, H, D] in physical units."""
    return self.source.chunks(self._action_tokenizer.horizon)

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    prefix = self._prefix(i, epoch)
    action = self._action_tokenizer.encode_bins(self._bins[i])
    answer = np.concatenate([self._plans[self.source.plan(i)], action])
    return Row(self._images(data), *prefix, *self._prompt.suffix(answer))

  def _prefix(self, i: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Asks for step `i`, with its state or, by dropout, without."""
    prefix = self._prefixes[self.source.instruction(i)]
    if self._spec.state is None:
      return prefix
    # A function of (step, epoch), so that a run that goes on asks the same.
    dropped = np.random.default_rng((i, epoch)).random() < self._dropout
    state = () if dropped else self._states[i]
    return self._prompt.with_state(prefix, state)

  def _images(self, data: Sequence[bytes]) -> tuple[bytes | None, ...]:
    """Puts the images of the cameras that there are into the model's order."""
    spec, files = self._spec, iter(data)
    return tuple(
      None if camera in spec.missing else next(files)
      for camera in spec.cameras
      for _ in range(spec.history)
    )


def open_robot(
  config: SourceConfig,
  split: str,
  action_tokenizer: ActionTokenizer,
  prompt: Prompt,
  spec: ObservationSpec,
  index_folder: str,
  max_skipped: int,
  state_dropout: float = 0.0,
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

  Raises:
    UserError: bad data, or text that is too long.
  """
  source = open_source(
    config, split, spec, index_folder or None, max_skipped=max_skipped
  )
  return RobotExamples(
    source, action_tokenizer, prompt, spec, state_dropout, max_skipped
  )


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


def _written(
  texts: Sequence[str], write: Callable[[str], Any]
) -> tuple[dict[str, Any], dict[int, UserError]]:
  """Writes each text as ids; and lists, by number, the errors of the others."""
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
    self.requests = self.source.requests
    self.location = self.source.location
    self._prompt = prompt
    self._spec = spec

  def __len__(self) -> int:
    return len(self.source)

  def row(self, i: int, epoch: int, data: Sequence[bytes]) -> Row:
    """Makes a row; each epoch takes the next answer."""
    example = self.parse(i, data)
    answer = example.answers[epoch % len(example.answers)]
    ids = self._prompt.tokenizer.encode(answer)
    shown = (example.image,) * self._spec.history
    images = shown + (None,) * (self._spec.num_images - len(shown))
    prefix = self._prompt.prefix(example.question)
    return Row(images, *prefix, *self._prompt.suffix(ids))

  def parse(self, i: int, data: Sequence[bytes]) -> web.WebExample:
    """Parses example `i` from the bytes of its request."""
    (request,) = self.requests(i)
    record = records.Record(request.path, request.offset, memoryview(data[0]))
    return web.parse(record)


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

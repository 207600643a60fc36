"""Prompts and answers of a source's robot steps, as rows of ids.

Every distinct text is tokenized once, when a source is opened; actions and
states are binned once. A batch's rows are then looked up together.

Shapes: N steps in all, n of a batch, P prefix and S suffix positions, H actions
of a chunk, D dimensions of an action, Z numbers of a state.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import RareTokens
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.mixture import uniform
from rt2_jax.input_pipeline.step_index import StepIndex, StepSource
from rt2_jax.input_pipeline.unusable import Unusable
from rt2_jax.observation import ObservationSpec
from rt2_jax.prompt import Prompt

_LOG = logging.getLogger(__name__)

Problems = dict[int, UserError]  # by a text's number

_AT_ONCE = 2**16  # rows that are binned together: float64 takes 8 times theirs


class _Prefixes(NamedTuple):
  """The prompts of K texts.

  Attributes:
    ids: int32[K, P], zeros in place of a state.
    mask_input: bool[K, P].
    state: int64[K], position of the state's first number.
  """

  ids: np.ndarray
  mask_input: np.ndarray
  state: np.ndarray


class Texts:
  """The distinct instructions and plans of a source, tokenized.

  Attributes:
    asking: the prompts, with room for a state where the model reads one.
    plans: ids of the plans; None for those that cannot be written.
    unfit_instructions: errors of the instructions that cannot be written.
    unfit_plans: errors of the plans.
  """

  def __init__(
    self,
    index: StepIndex,
    action_tokenizer: ActionTokenizer,
    prompt: Prompt,
    spec: ObservationSpec,
  ):
    self._prompt = prompt
    self._room = action_tokenizer.answer_length
    self._state_length = len(spec.state) if spec.state else 0
    prompt.suffix([0] * self._room)  # raises if the suffix is too short
    rows, self.unfit_instructions = _written(index.texts, self._instruction)
    self.asking = self._stack(rows)
    self.plans, self.unfit_plans = _written(index.plans, self._plan)
    self._instructions = index.texts

  @functools.cached_property
  def asking_without_state(self) -> _Prefixes:
    """The prompts of a model that reads a state, without one."""
    rows, _ = _written(self._instructions, self._prompt.robot_prefix)
    return self._stack([row and (*row, 0) for row in rows])

  def _instruction(self, text: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Writes a prompt: ids, mask_input and the state's position."""
    if not self._state_length:
      return *self._prompt.robot_prefix(text), 0
    around = self._prompt.around_state(text)
    position = self._prompt.prefix_length - len(around[1]) - self._state_length
    written = self._prompt.with_state(around, [0] * self._state_length)
    return *written, position

  def _plan(self, plan: str) -> np.ndarray:
    ids = self._prompt.plan_ids(plan)
    self._prompt.suffix([0] * (len(ids) + self._room))
    return ids

  def _stack(self, rows: Sequence[tuple | None]) -> _Prefixes:
    """Stacks prompts; those that cannot be written are zeros."""
    length = self._prompt.prefix_length
    none = np.zeros(length, np.int32), np.zeros(length, bool), 0
    columns = zip(none, *(row or none for row in rows), strict=True)
    return _Prefixes(*(np.stack(column)[1:] for column in columns))


class RobotText:
  """Writes prompts and answers of steps."""

  def __init__(
    self,
    source: StepSource,
    texts: Texts,
    action_tokenizer: ActionTokenizer,
    prompt: Prompt,
    spec: ObservationSpec,
    state_dropout: float,
  ):
    """Bins all actions and states.

    Args:
      source: the steps; all of them fit the prompt.
      texts: tokenized for this source.
      action_tokenizer: writes actions.
      prompt: says how long texts may be.
      spec: the parts of an observation that the model reads.
      state_dropout: fraction of the examples whose prompt holds no state.
    """
    self._source = source
    self._texts = texts
    self._tokenizer = action_tokenizer
    self._prompt = prompt
    self._dropout = state_dropout if spec.state else 0.0
    index, space = source.index, action_tokenizer.space
    self._bins = _binned(action_tokenizer, index.action)
    self._end = action_tokenizer.to_bins(space.after_end(np.zeros(len(space))))
    self._is_held = np.array([d.at_end is None for d in space.dimensions])
    self._state_tokens = spec.state and prompt.state_tokenizer(spec.state)
    if self._state_tokens:
      self._states = _binned(self._state_tokens, index.state)

  @property
  def nbytes(self) -> int:
    """Bytes of the bins."""
    states = self._states.nbytes if self._state_tokens else 0
    return self._bins.nbytes + states

  def prefixes(
    self, numbers: np.ndarray, epochs: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Asks for the actions of n steps.

    Args:
      numbers: int64[n].
      epochs: int64[n]; another epoch drops the states of other steps.

    Returns:
      int32[n, P] and mask_input bool[n, P].
    """
    text = self._source.index.text[numbers]
    asking = self._texts.asking
    ids, mask_input = asking.ids[text], asking.mask_input[text]
    if not self._state_tokens:
      return ids, mask_input
    tokens = self._state_tokens.encode_bins(self._states[numbers][:, None])
    positions = asking.state[text, None] + np.arange(tokens.shape[1])
    np.put_along_axis(ids, positions, tokens, 1)
    if self._dropout:
      # Of (step, epoch), so that a resumed run asks the same.
      drops = uniform(numbers, epochs) < self._dropout
      without = self._texts.asking_without_state
      ids[drops] = without.ids[text[drops]]
      mask_input[drops] = without.mask_input[text[drops]]
    return ids, mask_input

  def suffixes(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Writes n answers, int32[n, S] ids and float32[n, S] mask_loss."""
    bins = self._chunks(numbers)
    index = self._source.index
    if not index.plans and isinstance(self._tokenizer.route, RareTokens):
      return self._prompt.suffixes(self._tokenizer.route.of_bins(bins))
    answers = [self._tokenizer.encode_bins(chunk) for chunk in bins]
    if index.plans:
      plans = [self._texts.plans[p] for p in index.plan[numbers].tolist()]
      pairs = zip(plans, answers, strict=True)
      answers = [np.concatenate(pair) for pair in pairs]
    ids, mask_loss = zip(*map(self._prompt.suffix, answers), strict=True)
    return np.stack(ids), np.stack(mask_loss)

  def _chunks(self, numbers: np.ndarray) -> np.ndarray:
    """Gathers the bins of n chunks, int[n, H, D]."""
    horizon = self._tokenizer.horizon
    if horizon == 1:
      return self._bins[numbers, None]
    steps, is_past = self._source.following(numbers, horizon)
    bins = self._bins[steps]
    if not is_past.any():
      return bins
    ends = np.where(self._is_held, bins, self._end)
    return np.where(is_past[..., None], ends, bins)


def _binned(tokenizer: ActionTokenizer, values: np.ndarray) -> np.ndarray:
  """Quantizes float32[N, D] to uint8[N, D], some rows at a time."""
  bins = np.empty(values.shape, np.uint8)
  for start in range(0, len(values), _AT_ONCE):
    stop = start + _AT_ONCE
    bins[start:stop] = tokenizer.to_bins(values[start:stop])
  return bins


def _written(
  texts: Sequence[str], write: Callable[[str], Any]
) -> tuple[list[Any], Problems]:
  """Writes each text; None, and an error by its number, where that fails."""
  written, problems = [], {}
  for number, text in enumerate(texts):
    try:
      written.append(write(text))
    except UserError as problem:
      written.append(None)
      problems[number] = problem
  return written, problems


def check_plans(source: StepSource, prompt: Prompt):
  """Checks that both or neither of data and prompt have plans.

  Raises:
    UserError: only one of the two has.
  """
  count = len(source.index.plans)
  if bool(count) != bool(prompt.plan_length):
    raise UserError(
      f"{source.location(0)}: got data with {count} different plans, expected "
      f"{'some' if prompt.plan_length else 'none'} with config.prompt."
      f"plan_length = {prompt.plan_length}; change it, or use another dataset"
    )


def lost_steps(
  source: StepSource, steps: np.ndarray, problem: UserError
) -> list[Unusable]:
  """Lists the steps of a text that cannot be used; none without steps."""
  if not len(steps):
    return []
  line = f"{source.location(int(steps[0]))}: {problem} ({len(steps)} steps)"
  return [Unusable(line, examples=len(steps))]


def report_blank(source: StepSource, path: str):
  """Warns of steps with a blank instruction: they teach an empty question."""
  index = source.index
  blank = [i for i, text in enumerate(index.texts) if not text.strip()]
  count = int(np.isin(index.text, blank).sum()) if blank else 0
  if count:
    _LOG.warning(
      "%s: %d of %d steps have no instruction; filters.text_length = [1, 1000] "
      "leaves them out",
      path,
      count,
      len(source),
    )

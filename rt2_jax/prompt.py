"""Prompts: instructions and answers as prefix and suffix ids.

Training, evaluation, acting and export all call it, so that a robot is asked
in exactly the words in which it was taught.

Shapes: P prefix and S suffix positions, D numbers of a robot's state.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError
from rt2_jax.ranges import at_least
from rt2_jax.tokenizer import BOS, EOS, PAD, Tokenizer

# Paper, section 3.2.
ROBOT_TEMPLATE = "Q: what action should the robot take to {instruction}? A:"
# Paper, section 4.4. What ends a plan has ids of its own, whatever stands
# before it, so that decoding can look for them.
PLAN_START = "Plan: "
PLAN_END = ". Action:"
INSTRUCTION_FIELD, STATE_FIELD = "{instruction}", "{state}"  # of a template
_FIELD = re.compile(r"\{\w*\}")


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """Fields of a config's `prompt`, see `Prompt`."""

  prefix_length: Annotated[int, at_least(1)]
  suffix_length: Annotated[int, at_least(1)]
  template: str = ROBOT_TEMPLATE
  plan_length: Annotated[int, at_least(0)] = 0


def check_fields(template: str):
  """Checks the fields of a config's template: others would stay in the text.

  Raises:
    UserError: an unknown field, or a second place for a state.
  """
  fields = _FIELD.findall(template)
  known = {INSTRUCTION_FIELD, STATE_FIELD}
  if not known.issuperset(fields) or fields.count(STATE_FIELD) > 1:
    raise UserError(
      f"got fields {', '.join(fields)} in the template {template!r}, expected "
      f"{INSTRUCTION_FIELD}, and {STATE_FIELD} at most once; correct the "
      "template"
    )


def question_ids(tokenizer: Tokenizer, question: str) -> list[int]:
  """Tokenizes `[bos] question [newline]`, of any length."""
  return [BOS, *tokenizer.encode(question + "\n")]


def answer_ids(answer: Iterable[int]) -> list[int]:
  """Appends eos to an answer of any length."""
  return [*map(int, answer), EOS]


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Builds `[bos] question [newline]` and `answer [eos]`, padded.

  Attributes:
    tokenizer: text to ids.
    prefix_length: P, columns of the prefix, padded on the left so that every
      answer starts in the same column.
    suffix_length: S, columns of the suffix, padded on the right.
    template: the question for a robot, with the field `{instruction}`, and
      `{state}` where the model reads a robot's state.
    plan_length: most tokens of the plan that precedes every action, those of
      `PLAN_END` not counted; 0 for a robot that acts at once.
  """

  tokenizer: Tokenizer
  prefix_length: int
  suffix_length: int
  template: str = ROBOT_TEMPLATE
  plan_length: int = 0

  def __post_init__(self):
    if INSTRUCTION_FIELD not in self.template:
      raise UserError(
        f"got prompt template {self.template!r}, expected the field "
        f"{INSTRUCTION_FIELD!r} in it"
      )

  def robot_prefix(
    self, instruction: str, state: Sequence[int] = ()
  ) -> tuple[np.ndarray, np.ndarray]:
    """Asks a robot what to do; returns as `prefix` does.

    Args:
      instruction: fills the template.
      state: ids of the robot's state, from `state_ids`; none leaves its field
        empty.
    """
    if STATE_FIELD not in self.template:
      return self.prefix(self.robot_question(instruction))
    return self.with_state(self.around_state(instruction), state)

  def around_state(self, instruction: str) -> tuple[list[int], list[int]]:
    """Tokenizes the prompt around a robot's state; costs most of a row.

    The template has the field `{state}`.
    """
    before, _, after = self.template.partition(STATE_FIELD)
    return (
      [BOS, *self.tokenizer.encode(_fill(before, instruction))],
      self.tokenizer.encode(_fill(after, instruction) + "\n"),
    )

  def with_state(
    self, around: tuple[list[int], list[int]], state: Sequence[int]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Puts a state between the ids of `around_state`, as `robot_prefix`."""
    before, after = around
    return self._padded([*before, *map(int, state), *after])

  def robot_question(self, instruction: str) -> str:
    """Puts an instruction into the template, and no state."""
    parts = self.template.partition(STATE_FIELD)
    return "".join(_fill(part, instruction) for part in parts[::2])

  def robot_prefixes(
    self,
    instructions: Sequence[str],
    states: Sequence[Sequence[int]] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Asks B robots, with or without their states.

    Returns:
      ids int32[B, P] and mask_input bool[B, P].
    """
    states = [()] * len(instructions) if states is None else states
    return _stacked(map(self.robot_prefix, instructions, states))

  def state_ids(
    self, space: ActionSpace | None, state: np.ndarray
  ) -> np.ndarray:
    """Writes robots' states as one rare token for each number.

    Args:
      space: what the D numbers mean, with their bounds; None: there are none.
      state: float[..., D] in physical units; values outside are clipped.

    Returns:
      int32[..., D].

    Raises:
      UserError: a number is not finite.
    """
    if space is None:
      return np.zeros((*np.shape(state)[:-1], 0), np.int32)
    return self.state_tokenizer(space).encode(np.asarray(state)[..., None, :])

  def state_tokenizer(self, space: ActionSpace) -> ActionTokenizer:
    """Makes the tokenizer of a robot's states."""
    return ActionTokenizer(space, self.tokenizer.action_route("rare"))

  def prefixes(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenizes B questions: int32[B, P] ids and bool[B, P] mask_input."""
    return _stacked(map(self.prefix, questions))

  def prefix(self, question: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids int32[P] and mask_input bool[P], True on real tokens.

    Raises:
      UserError: the question is longer than the prefix.
    """
    return self._padded(question_ids(self.tokenizer, question))

  def _padded(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pads the ids of a question, see `prefix`."""
    pad = self.prefix_length - len(ids)
    if pad < 0:
      raise UserError(
        f"got a prompt of {len(ids)} tokens, expected at most "
        f"{self.prefix_length}: {self.tokenizer.decode(ids)!r}; shorten the "
        "instruction or raise config.prompt.prefix_length"
      )
    mask_input = np.arange(self.prefix_length) >= pad
    return np.asarray([*[PAD] * pad, *ids], np.int32), mask_input

  @functools.cached_property
  def plan_end(self) -> tuple[int, ...]:
    """The ids of `PLAN_END`; an action follows them at once."""
    return tuple(self.tokenizer.encode(PLAN_END))

  def plan_ids(self, plan: str) -> np.ndarray:
    """Tokenizes `Plan: {plan}. Action:`, before an action's ids, int32[n].

    Raises:
      UserError: the plan is empty, too long, or holds what ends it.
    """
    words = " ".join(plan.split())
    ids = self.tokenizer.encode(PLAN_START + words)
    if not words or len(ids) > self.plan_length:
      raise UserError(
        f"got a plan of {len(ids)} tokens, expected some words and at most "
        f"{self.plan_length} tokens: {plan!r}; change the plan or "
        "config.prompt.plan_length"
      )
    whole = np.asarray([*ids, *self.plan_end], np.int32)
    if self._action_start(whole) < len(whole):
      raise UserError(
        f"got a plan that holds {PLAN_END!r}, which ends it: {plan!r}; put it "
        "into other words"
      )
    return whole

  def split_plan(self, answer: Sequence[int]) -> tuple[str, np.ndarray]:
    """Undoes `plan_ids`: a robot's answer -> the plan, and the ids after it.

    The plan is "" for a robot that acts at once.
    """
    answer = np.asarray(answer, np.int32)
    if not self.plan_length:
      return "", answer
    start = self._action_start(answer)
    ids = answer[: start - len(self.plan_end)]
    words = self.tokenizer.decode(ids).removeprefix(PLAN_START)
    return words.strip(), answer[start:]

  def _action_start(self, answer: np.ndarray) -> int:
    """Finds the first position after `plan_end`."""
    end = np.asarray(self.plan_end)
    windows = np.lib.stride_tricks.sliding_window_view(answer, len(end))
    return int((windows == end).all(-1).argmax()) + len(end)

  def suffix(self, answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids int32[S] and mask_loss float32[S], 1 on answer and eos.

    Raises:
      UserError: the answer is longer than the suffix.
    """
    ids, mask_loss = self.suffixes(np.asarray([answer_ids(answer)])[:, :-1])
    return ids[0], mask_loss[0]

  def suffixes(self, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pads n answers of one length, int32[n, L], as `suffix` does.

    Returns:
      ids int32[n, S] and mask_loss float32[n, S].

    Raises:
      UserError: the answers are longer than the suffix.
    """
    count, length = answers.shape
    if length >= self.suffix_length:
      raise UserError(
        f"got an answer of {length + 1} tokens with eos, expected at most "
        f"{self.suffix_length}; raise config.prompt.suffix_length"
      )
    ids = np.full((count, self.suffix_length), PAD, np.int32)
    ids[:, :length], ids[:, length] = answers, EOS
    mask_loss = np.zeros(ids.shape, np.float32)
    mask_loss[:, : length + 1] = 1.0
    return ids, mask_loss


def _fill(template: str, instruction: str) -> str:
  """Puts an instruction into a template; spaces in it count once."""
  return template.replace(INSTRUCTION_FIELD, " ".join(instruction.split()))


def _stacked(rows: Iterable[tuple]) -> tuple[np.ndarray, np.ndarray]:
  ids, mask_input = zip(*rows, strict=True)
  return np.stack(ids), np.stack(mask_input)

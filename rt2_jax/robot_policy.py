"""What a policy offers a robot, whichever framework computes it.

Shapes: B robots, T frames of a camera (oldest first), F images of all cameras,
H x W camera pixels, A actions of a chunk (the horizon), D dimensions and L
tokens of an answer, N tokens of a plan, P prefix positions.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError
from rt2_jax.images import as_frames
from rt2_jax.observation import (
  Batched,
  Observation,
  ObservationSpec,
  from_images,
  to_batch,
)
from rt2_jax.prompt import Prompt

# Of each robot: float[A, D], or None.
Drafts = Sequence[np.ndarray | None] | None


class Decoded(NamedTuple):
  """Decoded answers.

  Attributes:
    plans: int32[B, N] with their ends, N = 0 without plans.
    ids: int32[B, L], the actions.
    passes: int32[B], as in `Decision`.
  """

  plans: np.ndarray
  ids: np.ndarray
  passes: np.ndarray


class Decision(NamedTuple):
  """What robots do next, and what it cost to find out.

  Attributes:
    plans: B plans in words, "" from a policy that acts at once.
    actions: float32[B, A, D] in physical units.
    passes: int32[B], passes of the decoder over each answer; a call takes as
      many as its largest.
  """

  plans: tuple[str, ...]
  actions: np.ndarray
  passes: np.ndarray


class RobotPolicy(abc.ABC):
  """Observation in, actions out.

  Attributes:
    prompt: how robots and questions are put into words.
    action_tokenizer: the meaning of action tokens; None without actions.
    observation: what the model reads of an observation.
  """

  prompt: Prompt
  action_tokenizer: ActionTokenizer | None
  observation: ObservationSpec

  @property
  def action_space(self) -> ActionSpace:
    """The meaning of the numbers of an action."""
    self._check_can_act()
    return self.action_tokenizer.space

  def __call__(
    self, image: np.ndarray, instruction: str | Sequence[str]
  ) -> np.ndarray:
    """Chooses the action to take now: `act` for robots of one camera.

    Args:
      image: uint8[H, W, 3], or uint8[T, H, W, 3] for a model with a history;
        with a leading B for several robots.
      instruction: what to do; B of them for several robots.

    Returns:
      float32[D] in physical units, or float32[B, D] for several robots, of
      which there may be none. The first action of a chunk.

    Raises:
      UserError: an image of another shape or type, an instruction that is
        longer than the prompt, parameters whose logits are not finite, or a
        model that reads several cameras or a state.
    """
    if isinstance(instruction, str):
      return self(np.asarray(image)[None], [instruction])[0]
    self._check_can_act()
    if is_empty(image, instruction):
      return np.empty((0, len(self.action_space)), np.float32)
    spec = self.observation
    if spec.several_cameras or spec.state:
      raise UserError(
        f"got one image for a model that reads the cameras {spec.cameras} and "
        f"{'a' if spec.state else 'no'} state, expected all of them; call "
        "policy.act([Observation(images, instruction, state)])"
      )
    image = as_frames(np.asarray(image), len(instruction), spec.history)
    return self._decided(from_images(image, instruction)).actions[:, 0]

  def act(self, observations: Sequence[Observation]) -> np.ndarray:
    """Chooses the next actions of B robots, see `decide`.

    Returns:
      float32[B, A, D] in physical units.
    """
    return self.decide(observations).actions

  def plan_and_act(
    self, observations: Sequence[Observation]
  ) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the plans and actions of `decide`."""
    return self.decide(observations)[:2]

  def decide(
    self, observations: Sequence[Observation], drafts: Drafts = None
  ) -> Decision:
    """Chooses the next actions of B robots, and the plans that lead to them.

    Args:
      observations: B of them.
      drafts: B guesses of the actions, float[A, D], such as each robot's last
        chunk; None for a robot without one. They never change an answer: a good
        one saves passes, and PyTorch's decoding does without them.

    Raises:
      UserError: an observation that does not fit `observation`, a draft of
        another shape or not finite, and as the call.
    """
    self._check_can_act()
    if isinstance(observations, Observation):  # a tuple, and so a sequence
      raise UserError(
        "got one Observation, expected a list of those of all robots; pass "
        "[observation]"
      )
    if not observations:
      shape = 0, self.action_tokenizer.horizon, len(self.action_space)
      return Decision((), np.empty(shape, np.float32), np.empty(0, np.int32))
    return self._decided(to_batch(observations, self.observation), drafts)

  def token_ids(self, seen: Batched) -> np.ndarray:
    """Decodes the tokens of B chunks, int32[B, L]."""
    self._check_can_act()
    if not len(seen.instruction):
      return np.empty((0, self.action_tokenizer.grammar.length), np.int32)
    return self._decode(seen, self._draft_ids(seen, None)).ids

  def prompts(self, seen: Batched) -> tuple[np.ndarray, np.ndarray]:
    """Asks B robots: ids int32[B, P] and mask_input bool[B, P]."""
    states = self.prompt.state_ids(self.observation.state, seen.state)
    return self.prompt.robot_prefixes(seen.instruction, states)

  def _decided(self, seen: Batched, drafts: Drafts = None) -> Decision:
    plans, ids, passes = self._decode(seen, self._draft_ids(seen, drafts))
    words = tuple(self.prompt.split_plan(row)[0] for row in plans)
    return Decision(words, self.action_tokenizer.decode(ids), passes)

  def _draft_ids(self, seen: Batched, drafts: Drafts) -> np.ndarray:
    """Writes drafts as tokens, int32[B, L]."""
    robots = len(seen.instruction)
    if drafts is None:
      return np.tile(self.action_tokenizer.draft(None), (robots, 1))
    if len(drafts) != robots:
      raise UserError(
        f"got {len(drafts)} drafts for {robots} robots, expected one for each, "
        "or None"
      )
    return np.stack([self.action_tokenizer.draft(draft) for draft in drafts])

  def _check_can_act(self):
    if self.action_tokenizer is None:
      raise UserError(
        "got a model that was trained on no robot, which answers questions "
        "and cannot act; train it with config.sources"
      )

  @abc.abstractmethod
  def _decode(self, seen: Batched, drafts: np.ndarray) -> Decoded:
    """Decodes B answers; drafts int32[B, L] may save passes."""


def is_empty(image: np.ndarray, texts: Sequence[str]) -> bool:
  """Tells whether nobody asks: no image and no instruction or question.

  Raises:
    UserError: one text for many images, no text for some, or images of
      different sizes.
  """
  if isinstance(texts, str):
    raise UserError(
      f"got the text {texts!r} for a batch of images, expected one for each of "
      "them in a list"
    )
  try:
    images = len(np.atleast_1d(np.asarray(image)))
  except ValueError as error:  # they do not make an array
    shapes = sorted({np.shape(one) for one in image})
    raise UserError(
      f"got images of shapes {shapes}, expected the same one for all of a call"
    ) from error
  if images and not len(texts):
    raise UserError(f"got {images} images and no text, expected {images} texts")
  return not images and not len(texts)


def check_finite(finite: np.ndarray) -> None:
  """Checks that a model chose by numbers; the argmax of NaN is token 0.

  Args:
    finite: bool[B], whether all logits of an example were finite.

  Raises:
    UserError: some were not.
  """
  if not finite.all():
    raise UserError(
      f"got logits that are not finite (NaN or infinite) for {(~finite).sum()} "
      f"of {len(finite)} examples, expected numbers: the parameters are "
      "damaged, or the loss had diverged when they were saved; use an earlier "
      "checkpoint"
    )

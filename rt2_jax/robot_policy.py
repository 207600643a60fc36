"""What a policy offers a robot, whichever framework computes it.

Shapes: B robots, T frames of a camera (oldest first), F images of all cameras,
H x W camera pixels, A actions of a chunk (the horizon), D dimensions and L
tokens of an answer, N tokens of a plan, P prefix positions.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from rt2_jax.actions import ActionSpace, ActionTokenizer
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
    return self._decoded(from_images(image, instruction))[1][:, 0]

  def act(self, observations: Sequence[Observation]) -> np.ndarray:
    """Chooses the next actions of B robots.

    Returns:
      float32[B, A, D] in physical units.

    Raises:
      UserError: an observation that does not fit `observation`, and as the
        call.
    """
    return self.plan_and_act(observations)[1]

  def plan_and_act(
    self, observations: Sequence[Observation]
  ) -> tuple[tuple[str, ...], np.ndarray]:
    """Chooses the next actions of B robots, and the plans that lead to them.

    Returns:
      B plans in words, "" from a policy that acts at once; and
      float32[B, A, D] in physical units.
    """
    self._check_can_act()
    if not observations:
      shape = 0, self.action_tokenizer.horizon, len(self.action_space)
      return (), np.empty(shape, np.float32)
    return self._decoded(to_batch(observations, self.observation))

  def token_ids(self, seen: Batched) -> np.ndarray:
    """Decodes the tokens of B chunks, int32[B, L]."""
    self._check_can_act()
    if not len(seen.instruction):
      return np.empty((0, self.action_tokenizer.grammar.length), np.int32)
    return self._plans_and_ids(seen)[1]

  def prompts(self, seen: Batched) -> tuple[np.ndarray, np.ndarray]:
    """Asks B robots: ids int32[B, P] and mask_input bool[B, P]."""
    states = self.prompt.state_ids(self.observation.state, seen.state)
    return self.prompt.robot_prefixes(seen.instruction, states)

  def _decoded(self, seen: Batched) -> tuple[tuple[str, ...], np.ndarray]:
    plans, ids = self._plans_and_ids(seen)
    words = tuple(self.prompt.split_plan(row)[0] for row in plans)
    return words, self.action_tokenizer.decode(ids)

  def _check_can_act(self):
    if self.action_tokenizer is None:
      raise UserError(
        "got a model that was trained on no robot, which answers questions "
        "and cannot act; train it with config.sources"
      )

  @abc.abstractmethod
  def _plans_and_ids(self, seen: Batched) -> tuple[np.ndarray, np.ndarray]:
    """Plans int32[B, N] with their ends, N = 0 without, and int32[B, L]."""


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

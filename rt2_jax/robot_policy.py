"""What a policy offers a robot, whichever framework computes it.

Shapes: B robots, F frames (oldest first), H x W camera pixels, D dimensions and
L tokens of an action, N tokens of a plan.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np

from rt2_jax.actions import ActionSpace, ActionTokenizer
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.prompt import Prompt


class RobotPolicy(abc.ABC):
  """Image and instruction in, action out.

  Attributes:
    prompt: how robots and questions are put into words.
    tokenizer: what action tokens mean; None for a model that only answers.
  """

  prompt: Prompt
  tokenizer: ActionTokenizer | None

  @property
  def action_space(self) -> ActionSpace:
    """What the numbers of an action mean."""
    self._check_can_act()
    return self.tokenizer.space

  def __call__(
    self, image: np.ndarray, instruction: str | Sequence[str]
  ) -> np.ndarray:
    """The action to take now, in physical units.

    Args:
      image: uint8[H, W, 3], or uint8[F, H, W, 3] for a model of F frames; with
        a leading B for several robots.
      instruction: what to do; B of them for several robots.

    Returns:
      float32[D], or float32[B, D] for several robots, of which there may be
      none.

    Raises:
      UserError: an image of another shape or type, an instruction that is
        longer than the prompt, or parameters whose logits are not finite.
    """
    if isinstance(instruction, str):
      return self(np.asarray(image)[None], [instruction])[0]
    return self.plan_and_act(image, instruction)[1]

  def token_ids(
    self,
    image: np.ndarray,
    instructions: Sequence[str],
    image_size: np.ndarray | None = None,
  ) -> np.ndarray:
    """Decodes the tokens of B actions, int32[B, L].

    Args:
      image: as in the call, with the leading B.
      instructions: B of them.
      image_size: int32[B, 2], height and width of each robot's images, when
        what lies below and right of them is padding.
    """
    self._check_can_act()
    if is_empty(image, instructions):
      return np.empty((0, self.tokenizer.grammar.length), np.int32)
    return self._plans_and_ids(image, instructions, image_size)[1]

  def plan_and_act(
    self, image: np.ndarray, instructions: Sequence[str]
  ) -> tuple[tuple[str, ...], np.ndarray]:
    """B actions and the thoughts that led to them.

    Args:
      image: as in the call, with the leading B.
      instructions: B of them.

    Returns:
      B plans in words, "" from a policy that acts at once; and float32[B, D].
    """
    self._check_can_act()
    if is_empty(image, instructions):
      return (), np.empty((0, len(self.action_space)), np.float32)
    plans, ids = self._plans_and_ids(image, instructions, None)
    words = tuple(self.prompt.split_plan(row)[0] for row in plans)
    return words, self.tokenizer.decode(ids)

  def _check_can_act(self):
    if self.tokenizer is None:
      raise UserError(
        "got a model that was trained on no robot, which answers questions "
        "and cannot act; train it with config.sources"
      )

  @abc.abstractmethod
  def _plans_and_ids(
    self,
    image: np.ndarray,
    instructions: Sequence[str],
    image_size: np.ndarray | None,
  ) -> tuple[np.ndarray, np.ndarray]:
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


def choose_tokenizer(
  tokenizers: Mapping[str, dict], source: str | None
) -> ActionTokenizer | None:
  """Reads the action tokenizer of a robot source.

  Args:
    tokenizers: each source's `ActionTokenizer.to_dict`, as checkpoints and
      exported folders hold them.
    source: may be None where there is one source, or none: then None comes
      back, and the model answers and cannot act.

  Raises:
    UserError: no such source.
  """
  if source is None and not tokenizers:
    return None
  if source is None and len(tokenizers) == 1:
    source = next(iter(tokenizers))
  if source not in tokenizers:
    raise unknown_name("the source to act as", str(source), tokenizers)
  return ActionTokenizer.from_dict(tokenizers[source])

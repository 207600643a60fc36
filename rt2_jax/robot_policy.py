"""What a policy offers a robot, whichever framework computes it.

Shapes: B robots, F frames (oldest first), H x W camera pixels, D dimensions and
L tokens of an action, N tokens of a plan.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from rt2_jax.actions import ActionSpace, ActionTokenizer
from rt2_jax.prompt import Prompt


class RobotPolicy(abc.ABC):
  """Image and instruction in, action out.

  Attributes:
    prompt: how robots and questions are put into words.
    tokenizer: what action tokens mean.
  """

  prompt: Prompt
  tokenizer: ActionTokenizer

  @property
  def action_space(self) -> ActionSpace:
    """What the numbers of an action mean."""
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
      float32[D], or float32[B, D] for several robots.

    Raises:
      UserError: an image of another shape or type, or an instruction that is
        longer than the prompt.
    """
    if isinstance(instruction, str):
      return self(np.asarray(image)[None], [instruction])[0]
    ids = self.token_ids(image, instruction)  # says so if it cannot act
    return self.tokenizer.decode(ids)

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
    plans, ids = self._plans_and_ids(image, instructions, None)
    words = tuple(self.prompt.split_plan(row)[0] for row in plans)
    return words, self.tokenizer.decode(ids)

  @abc.abstractmethod
  def _plans_and_ids(
    self,
    image: np.ndarray,
    instructions: Sequence[str],
    image_size: np.ndarray | None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Plans int32[B, N] with their ends, N = 0 without, and int32[B, L]."""

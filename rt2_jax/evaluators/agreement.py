"""How closely two policies agree: the proof at the end of a conversion.

Both see the same seeded pictures, questions and answers, in float32.

Shapes: B examples, F frames, N image tokens, E decoder width, S suffix columns,
V vocabulary, L tokens of an action.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax
import numpy as np

from rt2_jax import augment, trees
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt

# Of the largest entry. Correct float32 programs differ by a tenth of this; a
# wrong norm, activation or scale by several times as much.
TOLERANCE = 1e-4
_INSTRUCTIONS = ("pick apple", "open drawer", "stop", "move can to sponge")


class Inputs(NamedTuple):
  """What both policies are shown.

  Attributes:
    images: uint8[B, F, H, W, 3].
    instructions: B of them.
    suffix: int32[B, S], an answer to compute logits for.
  """

  images: np.ndarray
  instructions: tuple[str, ...]
  suffix: np.ndarray


class Outputs(NamedTuple):
  """What a policy makes of `Inputs`.

  Attributes:
    image_tokens: float32[B, N, E].
    logits: float32[B, S, V].
    action_ids: int32[B, L].
  """

  image_tokens: np.ndarray
  logits: np.ndarray
  action_ids: np.ndarray


class Actor(Protocol):
  """What `TorchPolicy` offers."""

  prompt: Prompt

  def image_tokens(self, image): ...

  def logits(self, image, prefix, mask_input, suffix): ...

  def token_ids(self, image, instructions): ...


def fixed_inputs(policy: Policy, seed: int = 0) -> Inputs:
  """The same for every policy of the same frames, vocabulary and actions."""
  random = np.random.default_rng(seed)
  batch, vocab_size = len(_INSTRUCTIONS), policy.model.llm.vocab_size
  # Patches of colour: noise, once it is resized, is grey to every model.
  shape = (batch, policy.model.num_frames, 6, 8, 3)
  images = random.integers(0, 256, shape, np.uint8)
  images = images.repeat(20, axis=2).repeat(20, axis=3)
  columns = policy.prompt.suffix_length
  suffix = random.integers(0, vocab_size, (batch, columns), np.int32)
  return Inputs(images, _INSTRUCTIONS, suffix)


def flax_outputs(policy: Policy, inputs: Inputs) -> Outputs:
  """Of a policy in JAX."""
  model, variables = VLM(policy.model), {"params": policy.params}
  images = augment.prepare(inputs.images, policy.model.img.image_size)
  prefix, mask_input = policy.prompt.robot_prefixes(inputs.instructions)

  @jax.jit
  def run(variables, images):
    tokens = model.apply(variables, images, method="embed_images")
    logits = model.apply(variables, images, prefix, mask_input, inputs.suffix)
    return tokens, logits

  tokens, logits = map(np.asarray, run(variables, images))
  ids = policy.token_ids(inputs.images, inputs.instructions)
  return Outputs(tokens, logits, ids)


def torch_outputs(policy: Actor, inputs: Inputs) -> Outputs:
  """Of a policy in PyTorch."""
  images, instructions, suffix = inputs
  prefix, mask_input = policy.prompt.robot_prefixes(instructions)
  return Outputs(
    policy.image_tokens(images),
    policy.logits(images, prefix, mask_input, suffix),
    policy.token_ids(images, instructions),
  )


@dataclasses.dataclass(frozen=True)
class Agreement:
  """The result.

  Attributes:
    image_tokens: largest difference.
    image_tokens_max: largest entry.
    logits: largest difference.
    logits_max: largest entry.
    same_actions: how many of the actions have equal ids.
    actions: how many there are.
  """

  image_tokens: float
  image_tokens_max: float
  logits: float
  logits_max: float
  same_actions: int
  actions: int

  @property
  def holds(self) -> bool:
    """Whether the two are the same model. NaN never is."""
    return (
      self.image_tokens <= TOLERANCE * self.image_tokens_max
      and self.logits <= TOLERANCE * self.logits_max
      and self.same_actions == self.actions
    )

  def __str__(self) -> str:
    return (
      f"max |Δ| image tokens {self.image_tokens:.1e} "
      f"(of {self.image_tokens_max:.3g})\n"
      f"max |Δ| logits       {self.logits:.1e} (of {self.logits_max:.3g})\n"
      f"equal action ids     {self.same_actions} of {self.actions} actions"
    )


def compare(ours: Outputs, theirs: Outputs) -> Agreement:
  """Measures how far `theirs` is from `ours`."""

  def difference(name: str) -> tuple[float, float]:
    a, b = getattr(ours, name), getattr(theirs, name)
    return float(np.abs(a - b).max()), float(np.abs(a).max())

  same = (ours.action_ids == theirs.action_ids).all(1)
  return Agreement(
    *difference("image_tokens"),
    *difference("logits"),
    int(same.sum()),
    len(same),
  )


def as_float32(model: VLMConfig) -> VLMConfig:
  """The same model, computing in float32."""
  return dataclasses.replace(
    model,
    img=dataclasses.replace(model.img, dtype="float32"),
    llm=dataclasses.replace(model.llm, dtype="float32"),
  )


def ends(model: VLMConfig, params: dict) -> tuple[VLMConfig, dict]:
  """A model's first and last layers, for one that is too large to run.

  Returns:
    The small model, and its parameters.
  """
  flat = {
    name: leaf[np.array([0, -1])] if _is_stacked(name) else leaf
    for name, leaf in trees.flatten(params).items()
  }
  small = dataclasses.replace(
    model,
    img=dataclasses.replace(model.img, depth=2),
    llm=dataclasses.replace(model.llm, depth=2),
  )
  return small, trees.unflatten(flat)


def _is_stacked(name: str) -> bool:
  return "/encoderblock/" in name or "llm/layers/" in name

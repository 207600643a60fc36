"""Measures how closely two policies agree, at the end of a conversion.

Both see the same seeded pictures, questions and answers, in float32.

Shapes: B examples, Q questions, F images, R side of the encoder's image, N
image tokens, E decoder width, S suffix positions, V vocabulary, L tokens of an
action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rt2_jax import augment, trees
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.observation import Batched, from_images
from rt2_jax.prompt import question_ids
from rt2_jax.robot_policy import RobotPolicy
from rt2_jax.tokenizer import EOS
from rt2_jax.weights.processor_agreement import QUESTIONS, as_processed

# Of the largest entry. Correct float32 programs differ by a tenth of this; a
# wrong norm, activation or scale by several times as much.
TOLERANCE = 1e-4
# bfloat16 has 8 significant bits: it moves a weight by this part of itself.
ROUNDING = 2.0**-8
# Of the largest entry, where weights were rounded. The errors of all layers add
# up; PaliGemma's logits of 20 move by 0.8 at most.
ROUNDED_TOLERANCE = 2.0**-3
_INSTRUCTIONS = ("pick apple", "open drawer", "stop", "move can to sponge")


class Inputs(NamedTuple):
  """The inputs that both policies get.

  Attributes:
    images: uint8[B, F, H, W, 3].
    instructions: B of them.
    suffix: int32[B, S], an answer to compute logits for.
    pictures: uint8[Q, F, R, R, 3], which nobody has to resize.
    questions: Q of them, to a robot and about pictures.
  """

  images: np.ndarray
  instructions: tuple[str, ...]
  suffix: np.ndarray
  pictures: np.ndarray
  questions: tuple[str, ...]


class Outputs(NamedTuple):
  """The outputs of a policy for `Inputs`.

  Attributes:
    image_tokens: float32[B, N, E].
    logits: float32[B, S, V].
    action_ids: int32[B, L] for each way of writing actions.
    answer_ids: int32[Q, S - 1], of which eos fills what follows an answer.
  """

  image_tokens: np.ndarray
  logits: np.ndarray
  action_ids: tuple[np.ndarray, ...]
  answer_ids: np.ndarray


def sources(action_tokenizers: dict[str, dict]) -> list[str | None]:
  """Names one robot source for each way of writing actions; [None] for none.

  Bounds are no part of how tokens follow one another, so that robots of one
  action space are proven by one of them.
  """
  grammars: dict[tuple, str] = {}
  for name, stored in action_tokenizers.items():
    ids, allowed, *_ = ActionTokenizer.from_dict(stored).grammar
    grammars.setdefault((ids.tobytes(), allowed.tobytes()), name)
  return list(grammars.values()) or [None]


def fixed_inputs(policy: RobotPolicy, seed: int = 0) -> Inputs:
  """Draws inputs from a seed, equal for all policies of the same sizes."""
  random = np.random.default_rng(seed)
  batch, vocab_size = len(_INSTRUCTIONS), policy.model.llm.vocab_size
  prompt, side = policy.prompt, policy.model.img.image_size
  # Patches of colour: noise, once it is resized, is grey to every model.
  shape = (batch, policy.model.num_images, 6, 8, 3)
  images = random.integers(0, 256, shape, np.uint8)
  images = images.repeat(20, axis=2).repeat(20, axis=3)
  suffix = random.integers(
    0, vocab_size, (batch, prompt.suffix_length), np.int32
  )
  robot = map(prompt.robot_question, _INSTRUCTIONS)
  questions = tuple(
    text
    for text in (*robot, *QUESTIONS)
    if len(question_ids(prompt.tokenizer, text)) <= prompt.prefix_length
  )
  shape = (len(questions), policy.model.num_images, side, side, 3)
  pictures = random.integers(0, 256, shape, np.uint8)
  return Inputs(images, _INSTRUCTIONS, suffix, pictures, questions)


def flax_outputs(policies: Sequence[RobotPolicy], inputs: Inputs) -> Outputs:
  """Runs a model in JAX; one policy for each way of writing actions."""
  policy = policies[0]
  model, variables = VLM(policy.model), {"params": policy.params}
  seen = _observed(policy, inputs)
  resolution = policy.model.img.image_size
  images = augment.prepare(seen.image, resolution, seen.image_size)
  text = (*policy.prompts(seen), inputs.suffix)

  @jax.jit
  def run(variables, images):
    tokens = model.apply(variables, images, method="embed_images")
    mask_image = augment.shown(seen.image_size)
    return tokens, model.apply(variables, images, *text, mask_image)

  tokens, logits = map(np.asarray, run(variables, images))
  return Outputs(
    tokens,
    logits,
    _action_ids(policies, inputs),
    policy.answer_ids(inputs.pictures, inputs.questions),
  )


def torch_outputs(
  policies: Sequence[RobotPolicy], processor: Any, inputs: Inputs
) -> Outputs:
  """Runs a model in PyTorch; its answers are those of stock transformers.

  Args:
    policies: one for each way of writing actions.
    processor: AutoProcessor of the model's folder.
    inputs: as `flax_outputs` has them.
  """
  policy = policies[0]
  seen = _observed(policy, inputs)
  text = (*policy.prompts(seen), inputs.suffix)
  return Outputs(
    policy.image_tokens(seen.image, seen.image_size),
    policy.logits(seen.image, *text, seen.image_size),
    _action_ids(policies, inputs),
    _stock_answers(policy, processor, inputs),
  )


def _observed(policy: RobotPolicy, inputs: Inputs) -> Batched:
  """Shows the inputs to a policy's robot; the cameras it lacks are missing."""
  spec = policy.observation
  has = np.repeat(
    [camera in spec.present for camera in spec.cameras], spec.history
  )
  size = has[:, None] * np.int32(inputs.images.shape[2:4])
  seen = from_images(
    inputs.images,
    inputs.instructions,
    np.broadcast_to(size, (len(inputs.images), *size.shape)),
  )
  if spec.state is None:
    return seen
  low, high = np.asarray([(d.low, d.high) for d in spec.state.dimensions]).T
  parts = np.linspace(0, 1, len(inputs.images))[:, None]
  return seen._replace(state=np.float32(low + parts * (high - low)))


def _action_ids(
  policies: Sequence[RobotPolicy], inputs: Inputs
) -> tuple[np.ndarray, ...]:
  return tuple(
    policy.token_ids(_observed(policy, inputs))
    for policy in policies
    if policy.action_tokenizer is not None
  )


def _stock_answers(
  policy: RobotPolicy, processor: Any, inputs: Inputs
) -> np.ndarray:
  """Answers with stock processor and `generate`, int32[Q, S - 1]."""
  length = policy.prompt.suffix_length - 1
  given = as_processed(processor, inputs.pictures, inputs.questions)
  given.pop("labels", None)
  found = policy.model.generate(
    **given, max_new_tokens=length, do_sample=False, num_beams=1
  )
  written = found[:, given["input_ids"].shape[1] :].cpu().numpy()
  ids = np.full((len(written), length), EOS, np.int32)
  for row, tokens in zip(ids, written, strict=True):
    ends = np.flatnonzero(tokens == EOS)
    tokens = tokens[: ends[0] if ends.size else None]
    row[: len(tokens)] = tokens
  return ids


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
    same_answers: how many of the answers have equal ids.
    answers: how many there are.
    finite: whether all numbers of both sides are.
    rounding: largest change of a weight, of itself, by a conversion that
      rounds; 0 for one that does not.
  """

  image_tokens: float
  image_tokens_max: float
  logits: float
  logits_max: float
  same_actions: int
  actions: int
  same_answers: int
  answers: int
  finite: bool
  rounding: float = 0.0

  @property
  def holds(self) -> bool:
    """Tells whether the two are the same model; NaN never agrees.

    Rounded weights may choose other tokens where two are nearly as likely.
    """
    same = (self.same_actions, self.same_answers) == (
      self.actions,
      self.answers,
    )
    tolerance = ROUNDED_TOLERANCE if self.rounding else TOLERANCE
    return (
      self.finite
      and self.rounding <= ROUNDING
      and (same or self.rounding > 0)
      and self.image_tokens <= tolerance * self.image_tokens_max
      and self.logits <= tolerance * self.logits_max
    )

  def __str__(self) -> str:
    lines = [
      f"max |Δ| image tokens {self.image_tokens:.1e} "
      f"(of {self.image_tokens_max:.3g})",
      f"max |Δ| logits       {self.logits:.1e} (of {self.logits_max:.3g})",
      f"equal action ids     {self.same_actions} of {self.actions} actions",
      f"equal answer ids     {self.same_answers} of {self.answers} answers",
    ]
    if self.rounding:
      lines.append(
        f"max |Δ| of a weight  {self.rounding:.2e} of itself (bfloat16 rounds "
        f"by up to {ROUNDING:.2e}; tokens and logits may move by "
        f"{ROUNDED_TOLERANCE} of their largest)"
      )
    if not self.finite:
      lines.append("got NaN or infinity, expected finite numbers")
    return "\n".join(lines)


def compare(ours: Outputs, theirs: Outputs, rounding: float = 0.0) -> Agreement:
  """Measures how far `theirs` is from `ours`; `rounding` as in `Agreement`."""

  def difference(name: str) -> tuple[float, float]:
    a, b = getattr(ours, name), getattr(theirs, name)
    return float(np.abs(a - b).max()), float(np.abs(a).max())

  actions = zip(ours.action_ids, theirs.action_ids, strict=True)
  same_actions = [(a == b).all(1) for a, b in actions]
  same_answers = (ours.answer_ids == theirs.answer_ids).all(1)
  return Agreement(
    *difference("image_tokens"),
    *difference("logits"),
    sum(int(same.sum()) for same in same_actions),
    sum(map(len, same_actions)),
    int(same_answers.sum()),
    len(same_answers),
    all(
      np.isfinite(x).all()
      for side in (ours, theirs)
      for x in (side.image_tokens, side.logits)
    ),
    rounding,
  )


def largest_rounding(params: dict, rounded: dict) -> float:
  """Measures the largest change of a parameter, as a fraction of itself.

  Subnormal numbers count as the smallest normal float32.
  """
  smallest = np.finfo(np.float32).tiny
  largest, others = 0.0, trees.flatten(rounded)
  for name, leaf in trees.flatten(params).items():
    a = np.asarray(leaf, np.float32)
    change = np.abs(a - np.asarray(others[name], np.float32))
    largest = max(
      largest, float((change / np.maximum(np.abs(a), smallest)).max())
    )
  return largest


def as_float32(model: VLMConfig) -> VLMConfig:
  """Returns the same model, computing in float32."""
  return dataclasses.replace(
    model,
    img=dataclasses.replace(model.img, dtype="float32"),
    llm=dataclasses.replace(model.llm, dtype="float32"),
  )


def ends(model: VLMConfig, params: dict) -> tuple[VLMConfig, dict]:
  """Keeps the first and last layer of both parts of a model too large to run.

  Returns:
    The small model, and its parameters.
  """
  flat = {
    name: leaf[np.array([0, -1])] if trees.is_stacked(name) else leaf
    for name, leaf in trees.flatten(params).items()
  }
  small = dataclasses.replace(
    model,
    img=dataclasses.replace(model.img, depth=2),
    llm=dataclasses.replace(model.llm, depth=2),
  )
  return small, trees.unflatten(flat)

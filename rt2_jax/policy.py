"""A checkpoint as a robot policy: image and instruction in, action out."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from rt2_jax import augment
from rt2_jax.actions import ActionSpace, ActionTokenizer
from rt2_jax.checkpoint import Checkpoints, abstract
from rt2_jax.decode import decode_actions
from rt2_jax.errors import unknown_name
from rt2_jax.images import as_frames
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM, init_params
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import Tokenizer


class Policy:
  """Acts on what a checkpoint holds, and on nothing else.

  Shapes: B robots, F frames (oldest first), H x W camera pixels, D dimensions.
  """

  def __init__(
    self,
    model: VLMConfig,
    params: dict,
    prompt: Prompt,
    tokenizer: ActionTokenizer,
  ):
    self.model = model
    self.params = params
    self.prompt = prompt
    self.tokenizer = tokenizer
    self._decode = jax.jit(self._image_to_ids)

  @classmethod
  def from_checkpoint(
    cls,
    folder: str | pathlib.Path,
    source: str | None = None,
    step: int | None = None,
  ) -> Policy:
    """Loads a policy.

    Args:
      folder: a run's workdir, or its folder `checkpoints`.
      source: whose action space and bounds to act in; may be left out when
        the checkpoint was trained on one robot source.
      step: which checkpoint; default: the newest.

    Raises:
      ValueError: no checkpoint there, or no such source in it.
    """
    checkpoints = Checkpoints.open_run(folder)
    meta, model_file = checkpoints.restore_meta(step)
    tokenizer = _choose(meta["action_tokenizers"], source)
    model = VLMConfig.from_dict(meta["model"])
    params = checkpoints.restore_params(_on_one_device(model), step)
    checkpoints.close()
    prompt = Prompt(Tokenizer(model_file), **meta["prompt"])
    return cls(model, params, prompt, tokenizer)

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
      ValueError: an image of another shape or type, or an instruction that is
        longer than the prompt.
    """
    if isinstance(instruction, str):
      return self(np.asarray(image)[None], [instruction])[0]
    return self.tokenizer.decode(self.token_ids(image, instruction))

  def token_ids(
    self, image: np.ndarray, instructions: Sequence[str]
  ) -> np.ndarray:
    """The tokens of B actions, int32[B, L]; arguments as in the call."""
    images = as_frames(
      np.asarray(image), len(instructions), self.model.num_frames
    )
    prefix, mask_input = self.prompt.robot_prefixes(instructions)
    return np.asarray(self._decode(self.params, images, prefix, mask_input))

  def _image_to_ids(self, params, images, prefix, mask_input):
    prepared = augment.prepare(images, self.model.img.image_size)
    return decode_actions(
      VLM(self.model),
      params,
      prepared,
      prefix,
      mask_input,
      self.tokenizer.grammar,
    )


def _choose(tokenizers: dict, source: str | None) -> ActionTokenizer:
  if source is None and len(tokenizers) == 1:
    source = next(iter(tokenizers))
  if source not in tokenizers:
    raise unknown_name("the source to act as", str(source), tokenizers)
  return ActionTokenizer.from_dict(tokenizers[source])


def _on_one_device(model: VLMConfig) -> dict:
  """ShapeDtypeStructs of the parameters, on the first device."""
  shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return abstract(shapes, jax.tree.map(lambda _: device, shapes))

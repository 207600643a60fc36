"""An exported folder as a robot policy in PyTorch, without JAX.

Needs torch, transformers and the words of this package: the same prompt, the
same image path and the same action grammar as `policy.Policy`, which is why it
gives the same action.

Shapes: B robots, F images of each, H x W camera pixels, R x R encoder
pixels, P prefix columns, S suffix columns, L tokens of an action, N tokens of a
plan, D dimensions of an action, E decoder width, V vocabulary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np
import safetensors
import torch
import transformers

from rt2_jax import local_copies, storage
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint_meta import ROBOT_FILE, CheckpointMeta
from rt2_jax.errors import UserError, first_line
from rt2_jax.images import as_frames, as_sizes, resize
from rt2_jax.observation import Batched, ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.pytorch.decode import answer, decode, vocab_size
from rt2_jax.robot_policy import (
  Decoded,
  RobotPolicy,
  check_finite,
  is_empty,
)
from rt2_jax.tokenizer import Tokenizer


class TorchPolicy(RobotPolicy):
  """Acts on what a folder of `launch/convert.py to_hf` holds."""

  def __init__(
    self,
    model: transformers.PaliGemmaForConditionalGeneration,
    prompt: Prompt,
    action_tokenizer: ActionTokenizer | None,
    observation: ObservationSpec,
  ):
    self.model = model.eval()
    self.prompt = prompt
    self.action_tokenizer = action_tokenizer
    self.observation = observation

  @classmethod
  def from_folder(
    cls,
    folder: str | os.PathLike,
    source: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
  ) -> TorchPolicy:
    """Loads a policy.

    Args:
      folder: what `launch/convert.py to_hf` wrote.
      source: whose action space and bounds to act in; may be left out when
        the folder has one.
      device: where to compute, e.g. "cuda".
      dtype: what to compute in; the conversion is proven in "float32".

    Raises:
      UserError: not such a folder, no such source in it, or weights that are
        not whole.
    """
    found = _find_robot_file(folder).parent
    with local_copies.of(found) as local:
      model = _load(local, dtype)
    return cls.around(model.to(device), folder, source)

  @classmethod
  def around(
    cls,
    model: transformers.PaliGemmaForConditionalGeneration,
    folder: str | os.PathLike,
    source: str | None = None,
  ) -> TorchPolicy:
    """Builds a policy around a model, with all else from a folder.

    Args:
      model: e.g. compiled, quantised or fine-tuned further.
      folder: as in `from_folder`.
      source: likewise.

    Raises:
      UserError: as `from_folder`.
    """
    file = _find_robot_file(folder)
    try:
      robot = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
      raise UserError(
        f"got {file}, which is not a whole JSON file ({error}); copy it again"
      ) from error
    meta = CheckpointMeta.from_dict(robot)
    action_tokenizer, observation = meta.robot(source)
    text = Tokenizer.from_file(file.parent / "tokenizer.model")
    return cls(
      model, meta.make_prompt(text, source), action_tokenizer, observation
    )

  @torch.inference_mode()
  def answer(
    self,
    image: np.ndarray,
    questions: Sequence[str],
    image_size: np.ndarray | None = None,
  ) -> tuple[str, ...]:
    """Answers questions about B images; see `rt2_jax.policy.Policy.answer`."""
    if is_empty(image, questions):
      return ()
    image = as_frames(image, len(questions), self.observation.num_images)
    pixels = self.prepare(image, len(image), image_size)
    shown = self.shown(image, image_size)
    inputs = self.inputs(shown, *self.prompt.prefixes(questions))
    room = self.prompt.suffix_length - 1  # for eos, as answers are taught
    ids, finite = answer(self.model, inputs, pixels, room)
    check_finite(finite)
    return tuple(self.prompt.tokenizer.decode(row) for row in ids)

  @torch.inference_mode()
  def image_tokens(
    self, image: np.ndarray, image_size: np.ndarray | None = None
  ) -> np.ndarray:
    """Encodes images, uint8[B, F, H, W, 3] -> float32[B, F * n, E]."""
    pixels = self.prepare(image, len(image), image_size)
    features = self.model.get_image_features(pixels).pooler_output
    return _numpy(features.reshape(len(image), -1, features.shape[-1]))

  @torch.inference_mode()
  def logits(
    self,
    image: np.ndarray,
    prefix: np.ndarray,
    mask_input: np.ndarray,
    suffix: np.ndarray,
    image_size: np.ndarray | None = None,
  ) -> np.ndarray:
    """Computes the logits of a known answer (teacher forcing), as `VLM` does.

    Args:
      image: uint8[B, F, H, W, 3].
      prefix: int32[B, P], padded on the left.
      mask_input: bool[B, P].
      suffix: int32[B, S].
      image_size: as in `prepare`.

    Returns:
      float32[B, S, V]; `[:, i]` predicts `suffix[:, i]`.
    """
    shown = self.shown(image, image_size)
    inputs = self.inputs(shown, prefix, mask_input, suffix[:, :-1])
    outputs = self.model(
      **inputs,
      pixel_values=self.prepare(image, len(image), image_size),
      logits_to_keep=suffix.shape[1],
    )
    return _numpy(outputs.logits[..., : vocab_size(self.model)])

  def prepare(
    self,
    image: np.ndarray,
    batch: int,
    image_size: np.ndarray | None = None,
  ) -> torch.Tensor:
    """Resizes images as the JAX side does, bit for bit.

    Args:
      image: uint8[B, F, H, W, 3].
      batch: B.
      image_size: int32[B, F, 2], height and width of each image; what lies
        below and right of it is padding. 0 x 0 for a missing camera.

    Returns:
      dtype[B * F, 3, R, R] in [-1, 1].

    Raises:
      UserError: images of another shape or type.
    """
    image = as_frames(image, batch, self.observation.num_images)
    resolution = self.model.config.vision_config.image_size
    # A missing image counts as one black pixel; nobody attends to it.
    sizes = np.maximum(as_sizes(image_size, image), 1)
    resized = [
      resize(frame[:height, :width], resolution)
      for frames, own in zip(image, sizes, strict=True)
      for frame, (height, width) in zip(frames, own, strict=True)
    ]
    shape = len(resized), resolution, resolution, 3
    pixels = self._tensor(np.reshape(np.asarray(resized, np.uint8), shape))
    scaled = pixels.movedim(-1, 1).float() / 127.5 - 1.0
    return scaled.to(self.model.dtype)

  def shown(
    self, image: np.ndarray, image_size: np.ndarray | None = None
  ) -> np.ndarray:
    """Tells which images exist, bool[B, F]; see `augment.shown`."""
    return (as_sizes(image_size, image) > 0).all(-1)

  def inputs(
    self,
    shown: np.ndarray,
    prefix: np.ndarray,
    mask_input: np.ndarray,
    suffix: np.ndarray | None = None,
  ) -> dict[str, torch.Tensor]:
    """Lays out a row [image | prefix | suffix] as inputs of transformers.

    Token type 0 sees everything of its type, type 1 what came before. Positions
    count real tokens only, so that the prefix's padding moves nothing.

    Args:
      shown: bool[B, F], False on images that do not exist.
      prefix: int32[B, P], padded on the left.
      mask_input: bool[B, P].
      suffix: int32[B, S]; None: there is none.
    """
    config = self.model.config
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    if suffix is None:
      suffix = np.empty((len(prefix), 0), np.int32)
    real_image = shown.repeat(patches, axis=1)
    image = np.full(real_image.shape, config.image_token_id)
    real = [real_image, mask_input, np.ones_like(suffix)]
    types = [np.zeros_like(image), np.zeros_like(prefix), np.ones_like(suffix)]
    real = self._tensor(np.concatenate(real, 1)).long()
    return {
      "input_ids": self._tensor(np.concatenate([image, prefix, suffix], 1)),
      "attention_mask": real,
      "token_type_ids": self._tensor(np.concatenate(types, 1)).long(),
      "position_ids": real.cumsum(1),
    }

  @torch.inference_mode()
  def _decode(self, seen: Batched, drafts: np.ndarray) -> Decoded:
    del drafts  # `generate` decodes one by one
    pixels = self.prepare(seen.image, len(seen.image), seen.image_size)
    shown = self.shown(seen.image, seen.image_size)
    inputs = self.inputs(shown, *self.prompts(seen))
    plan = ()
    if self.prompt.plan_length:
      plan = self.prompt.plan_end, self.prompt.plan_length
    plans, ids, finite = decode(
      self.model, inputs, pixels, self.action_tokenizer.grammar, *plan
    )
    check_finite(finite)
    return Decoded(plans, ids, np.full(len(ids), ids.shape[1], np.int32))

  def _tensor(self, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
  return tensor.float().cpu().numpy()


def _load(
  folder: os.PathLike, dtype: str
) -> transformers.PaliGemmaForConditionalGeneration:
  """Loads all weights of a folder; transformers draws those that it lacks."""
  architecture = transformers.PaliGemmaForConditionalGeneration
  try:
    model, read = architecture.from_pretrained(
      folder,
      dtype=getattr(torch, dtype),
      local_files_only=True,
      output_loading_info=True,
    )
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"got {folder}, which transformers cannot load ({first_line(error)}); "
      "copy it again"
    ) from error
  missing, extra = sorted(read["missing_keys"]), sorted(read["unexpected_keys"])
  if missing or extra:
    raise UserError(
      f"got {folder} with {len(missing)} tensors of the model missing and "
      f"{len(extra)} that it does not have, such as {(missing + extra)[0]}, "
      "expected all of them and no other; copy it again, or merge its adapters"
    )
  return model


def _find_robot_file(folder: str | os.PathLike) -> storage.Path:
  file = storage.locate(folder, "the folder of a policy") / ROBOT_FILE
  if not file.is_file():
    raise UserError(
      f"got {folder} without {ROBOT_FILE}, expected a folder that "
      "`launch/convert.py to_hf` wrote"
    )
  return file

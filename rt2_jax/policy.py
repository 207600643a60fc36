"""A checkpoint as a robot policy: observations in, actions out.

The same model answers questions about images in free text.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rt2_jax import augment, sharding
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.compiler_options import ACTING, options_for
from rt2_jax.decode import (
  Prompts,
  decode_actions,
  decode_plans_and_actions,
  decode_text,
)
from rt2_jax.held_params import as_read, held_params
from rt2_jax.images import as_frames, as_sizes
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.observation import ONE_CAMERA, Batched, ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.robot_policy import (
  Decoded,
  RobotPolicy,
  check_finite,
  is_empty,
)
from rt2_jax.tokenizer import EOS, Tokenizer
from rt2_jax.weights import lora_base


class Policy(RobotPolicy):
  """Acts on what a checkpoint holds, and on nothing else.

  Shapes: B robots or pictures, F images of each, H x W camera pixels, P prefix
  and S suffix positions.
  """

  def __init__(
    self,
    model: VLMConfig,
    params: dict,
    prompt: Prompt | None,
    action_tokenizer: ActionTokenizer | None,
    observation: ObservationSpec = ONE_CAMERA,
    mesh: Mesh | None = None,
  ):
    """Takes over the parameters.

    Args:
      model: sizes of the model.
      params: its parameters, on the devices of the mesh.
      prompt: how robots and questions are put into words; None to lower only.
      action_tokenizer: the meaning of action tokens; None without actions.
      observation: what the model reads of the robot's observations.
      mesh: where the model computes; default: one device.
    """
    self.model = model
    self.params = params
    self.prompt = prompt
    self.action_tokenizer = action_tokenizer
    self.observation = observation
    self.mesh = mesh or one_device()
    sizes = model, self.mesh, observation.several_cameras
    if action_tokenizer:
      self._act = _program(_image_to_ids, *sizes, action_tokenizer.writing)
    if prompt:
      end, longest = prompt.plan_end, prompt.plan_length
      room = prompt.suffix_length - 1  # for eos, as answers are taught
      self._answer = _program(_image_to_text, *sizes, room)
    if action_tokenizer and prompt:
      self._plan = _program(
        _image_to_plan_and_ids, *sizes, action_tokenizer.writing, end, longest
      )
    self._force = _program(_image_to_forced, *sizes)

  @classmethod
  def from_checkpoint(
    cls,
    folder: str | os.PathLike,
    source: str | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
  ) -> Policy:
    """Loads a policy.

    Args:
      folder: a run's workdir, or its folder `checkpoints`.
      source: whose action space and bounds to act in; may be left out when
        the checkpoint was trained on one robot source, or on none: then it
        answers and cannot act.
      step: which checkpoint; default: the newest.
      mesh: where the model computes; default: one device.

    Raises:
      UserError: no checkpoint there, or no such source in it.
    """
    checkpoints = Checkpoints.open_run(folder)
    meta, model_file = checkpoints.restore_meta(step)
    meta = CheckpointMeta.from_dict(meta)
    action_tokenizer, observation = meta.robot(source)
    mesh = mesh or one_device()
    shapes = held_params(meta.model)
    params = as_read(
      lora_base.restore(
        checkpoints,
        meta,
        sharding.abstract(shapes, sharding.state_shardings(shapes, mesh)),
        step,
      ),
      mesh,
    )
    checkpoints.close()
    prompt = meta.make_prompt(Tokenizer(model_file), source)
    return cls(meta.model, params, prompt, action_tokenizer, observation, mesh)

  def in_int8(self) -> Policy:
    """Returns the same policy with matrices of 8 bits, see `weights.int8`."""
    from rt2_jax.weights import int8  # needs a package of its own

    params, robot = int8.quantize(self.params), self.action_tokenizer
    return Policy(
      self.model, params, self.prompt, robot, self.observation, self.mesh
    )

  def answer(
    self,
    image: np.ndarray,
    questions: Sequence[str],
    image_size: np.ndarray | None = None,
  ) -> tuple[str, ...]:
    """Answers questions about B images in free text.

    Args:
      image: uint8[B, H, W, 3] for a model of one image, or
        uint8[B, F, H, W, 3].
      questions: B whole prompts, such as "Answer in en: what is this?".
      image_size: int32[B, F, 2], height and width of each image, when what
        lies below and right of it is padding; 0 x 0 for a missing camera.

    Returns:
      B answers, each at most as long as the prompt's suffix.
    """
    if is_empty(image, questions):
      return ()
    ids = self.answer_ids(image, questions, image_size)
    return tuple(self.prompt.tokenizer.decode(row) for row in ids)

  def answer_ids(
    self,
    image: np.ndarray,
    questions: Sequence[str],
    image_size: np.ndarray | None = None,
  ) -> np.ndarray:
    """Decodes the tokens of `answer`, int32[B, L]; eos follows a text."""
    prompts = self.prompt.prefixes(questions)
    (ids,) = self._run(self._answer, image, image_size, *prompts)
    return ids

  def forced_ids(
    self,
    image: np.ndarray,
    image_size: np.ndarray | None,
    prompts: tuple[np.ndarray, np.ndarray],
    suffix: np.ndarray,
  ) -> np.ndarray:
    """Predicts each token of a known answer (teacher forcing).

    Args:
      image: as in `answer`.
      image_size: likewise.
      prompts: prefix int32[B, P] and mask_input bool[B, P], from the prompt.
      suffix: int32[B, S], the answers.

    Returns:
      int32[B, S], over the whole vocabulary, as in training.
    """
    if is_empty(image, suffix):
      return np.empty(np.shape(suffix), np.int32)
    (ids,) = self._run(self._force, image, image_size, *prompts, suffix)
    return ids

  def lower_decode(
    self,
    images: jax.Array,
    image_size: jax.Array,
    prefix: jax.Array,
    mask_input: jax.Array,
    drafts: jax.Array,
  ) -> jax.stages.Lowered:
    """Lowers acting, to be compiled for machines that are not here.

    Args:
      images: uint8[B, F, H, W, 3]; like all others a ShapeDtypeStruct.
      image_size: int32[B, F, 2].
      prefix: int32[B, P].
      mask_input: bool[B, P].
      drafts: int32[B, L].
    """
    with sharding.scope(self.mesh):
      return self._act.lower(
        self.params, images, image_size, prefix, mask_input, drafts
      )

  def _decode(self, seen: Batched, drafts: np.ndarray) -> Decoded:
    columns = seen.image, seen.image_size, *self.prompts(seen), drafts
    if self.prompt.plan_length:
      return Decoded(*self._run(self._plan, *columns))
    ids, passes = self._run(self._act, *columns)
    return Decoded(ids[:, :0], ids, passes)

  def _run(self, call, image, image_size, *columns):
    """Runs a compiled call, its rows filled up to the parts of the mesh.

    Returns:
      Its results but the last, which says whether all logits were finite.

    Raises:
      UserError: they were not.
    """
    rows = len(columns[0])
    images = as_frames(np.asarray(image), rows, self.model.num_images)
    image_size = as_sizes(image_size, images)
    missing = -rows % sharding.batch_shards(self.mesh.shape)
    filled = [
      np.concatenate([x, np.repeat(x[-1:], missing, 0)])
      for x in (images, image_size, *columns)
    ]
    with sharding.scope(self.mesh):
      placed = sharding.same_rows_to_devices(filled, self.mesh)
      results = call(self.params, *placed)
    *results, finite = jax.tree.map(lambda x: np.asarray(x)[:rows], results)
    check_finite(finite)
    return results


@functools.lru_cache(maxsize=64)
def _program(
  function: Callable,
  model: VLMConfig,
  mesh: Mesh,
  several_cameras: bool,
  *static: Any,
) -> jax.stages.Wrapped:
  """Makes a program that is compiled once for all policies of these sizes.

  They may differ in parameters, words, and bounds of actions.
  """
  acts = function in (_image_to_ids, _image_to_plan_and_ids)
  return jax.jit(
    functools.partial(function, model, several_cameras, *static),
    out_shardings=sharding.replicated(mesh),
    compiler_options=options_for(mesh, ACTING) if acts else None,
  )


def _image_to_ids(model, several_cameras, writing, params, *columns):
  *columns, drafts = columns
  prompts = make_prompts(model, several_cameras, *columns)
  return decode_actions(VLM(model), params, prompts, drafts, writing.grammar())


def _image_to_plan_and_ids(
  model, several_cameras, writing, end, longest, params, *columns
):
  *columns, drafts = columns
  prompts = make_prompts(model, several_cameras, *columns)
  grammar = writing.grammar()
  plans, actions = decode_plans_and_actions(
    VLM(model), params, prompts, drafts, grammar, end, longest
  )
  return plans, *actions


def _image_to_text(model, several_cameras, room, params, *columns):
  prompts = make_prompts(model, several_cameras, *columns)
  return decode_text(VLM(model), params, prompts, room, EOS)


def _image_to_forced(model, several_cameras, params, *columns):
  *columns, suffix = columns
  images, *text, mask_image = make_prompts(model, several_cameras, *columns)
  logits = VLM(model).apply(
    {"params": params}, images, *text, suffix, mask_image
  )
  return jnp.argmax(logits, -1), jnp.isfinite(logits).all((1, 2))


def make_prompts(
  model: VLMConfig,
  several_cameras: bool,
  images: jax.Array,
  image_size: jax.Array,
  prefix: jax.Array,
  mask_input: jax.Array,
) -> Prompts:
  """Prepares images as training does, without its random changes.

  Args:
    model: its sizes.
    several_cameras: whether some robot may lack one.
    images: as in `Policy.lower_decode`, like the rest.
    image_size: int32[B, F, 2].
    prefix: int32[B, P].
    mask_input: bool[B, P].
  """
  resized = augment.prepare(images, model.img.image_size, image_size)
  mask_image = augment.shown(image_size) if several_cameras else None
  return Prompts(resized, prefix, mask_input, mask_image)


def one_device() -> Mesh:
  """Makes a mesh of this process's first device."""
  return sharding.make_mesh({}, jax.local_devices()[:1])

"""The state of training, and the step that moves it on.

Free of TensorFlow and files: the same step runs on synthetic batches.

Shapes: B examples, F frames, H x W camera pixels, S suffix columns, V
vocabulary, D action dimensions, M sources of the mixture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rt2_jax import augment, checkpoint, losses, sharding
from rt2_jax.action_tokens import NUM_BINS, RareTokens
from rt2_jax.actions import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM, init_params


@flax.struct.dataclass
class TrainState:
  """What a step changes.

  Attributes:
    step: int32[], steps done.
    params: the model's parameters, float32.
    opt_state: the optimizer's.
  """

  step: jax.Array
  params: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Trainer:
  """The parts that stay the same from step to step.

  Attributes:
    model: sizes of the model.
    optimizer: from `optimizer.make_optimizer`.
    augmentation: how training images are changed.
    tokenizers: the action tokenizer of each source, None for a web source.
    seed: of the parameters and the augmentation.
    mesh: where everything lives.
  """

  model: VLMConfig
  optimizer: optax.GradientTransformation
  augmentation: augment.Augmentation
  tokenizers: Sequence[ActionTokenizer | None]
  seed: int
  mesh: Mesh

  def abstract_state(self) -> TrainState:
    """ShapeDtypeStructs with shardings; allocates nothing."""
    shapes = jax.eval_shape(self._init)
    return checkpoint.abstract(
      shapes, sharding.state_shardings(shapes, self.mesh)
    )

  def init_state(self) -> TrainState:
    """A fresh state, drawn where it will live."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    with jax.set_mesh(self.mesh):
      return jax.jit(self._init, out_shardings=shardings)()

  def state_from(self, params: Any) -> TrainState:
    """A state at step 0 around parameters that were loaded."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    with jax.set_mesh(self.mesh):
      opt_state = jax.jit(
        self.optimizer.init, out_shardings=shardings.opt_state
      )(params)
    step = jax.device_put(np.zeros((), np.int32), shardings.step)
    return TrainState(step, params, opt_state)

  def compile_step(self) -> Callable[[TrainState, Batch], tuple]:
    """`train_step` compiled for the mesh; the old state's memory is reused."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    step = jax.jit(
      self.train_step,
      in_shardings=(shardings, sharding.batch_sharding(self.mesh)),
      out_shardings=(shardings, sharding.replicated(self.mesh)),
      donate_argnums=0,
    )

    def on_mesh(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
      # Without a mesh in scope flax drops logical constraints in silence.
      with (
        jax.set_mesh(self.mesh),
        nn.logical_axis_rules(sharding.ACTIVATION_RULES),
      ):
        return step(state, batch)

    return on_mesh

  def training_images(self, batch: Batch, step: int | jax.Array) -> jax.Array:
    """What the model sees of a batch, float32[B, F, R, R, 3] in [-1, 1].

    A constant key and the step's number: the same images after a restart.
    """
    key = jax.random.fold_in(jax.random.key(self.seed), step)
    return augment.augment(
      batch.image,
      self.model.img.image_size,
      self.augmentation,
      key,
      batch.image_size,
    )

  def train_step(
    self, state: TrainState, batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: before the step.
      batch: the global batch.

    Returns:
      The state after the step, and metrics: sums over the examples of each
      source, see `batch_metrics`, and global norms.
    """
    images = self.training_images(batch, state.step)

    def loss_fn(params):
      logits = VLM(self.model).apply(
        {"params": params}, images, batch.prefix, batch.mask_input, batch.suffix
      )
      loss = losses.answer_loss(logits, batch.suffix, batch.mask_loss)
      return loss.mean(), (loss, logits)

    grads, (loss, logits) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = self.optimizer.update(
      grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    metrics = batch_metrics(loss, logits, batch, self.tokenizers)
    metrics |= {
      "gradient_norm": optax.tree.norm(grads),
      "update_norm": optax.tree.norm(updates),
      "parameter_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, opt_state), metrics

  def _init(self) -> TrainState:
    params = init_params(self.model, jax.random.key(self.seed))
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, self.optimizer.init(params))


def batch_metrics(
  loss: jax.Array,
  logits: jax.Array,
  batch: Batch,
  tokenizers: Sequence[ActionTokenizer | None],
) -> dict[str, jax.Array]:
  """Sums over the examples of each source; divide them by `examples`.

  Args:
    loss: float32[B].
    logits: float32[B, S, V].
    batch: what they belong to.
    tokenizers: of the M sources, None for a web source.

  Returns:
    examples, loss and token_accuracy (of the answer, over the whole
    vocabulary) float32[M]; for robot sources that write one token per
    dimension `correct/{m}` float32[D], right tokens, and `l1/{m}` float32[D],
    distance in physical units between the likeliest valid bin and the recorded
    one.
  """
  member = batch.source[:, None] == jnp.arange(len(tokenizers))
  member = member.astype(jnp.float32)
  right = jnp.argmax(logits, -1) == batch.suffix
  counted = batch.mask_loss / jnp.maximum(
    batch.mask_loss.sum(-1, keepdims=True), 1.0
  )
  metrics = {
    "examples": member.sum(0),
    "loss": loss @ member,
    "token_accuracy": (right * counted).sum(-1) @ member,
  }
  for m, tokenizer in enumerate(tokenizers):
    if tokenizer is None or not isinstance(tokenizer.route, RareTokens):
      continue
    width = len(tokenizer.space)
    metrics[f"correct/{m}"] = member[:, m] @ right[:, :width]
    error = _bin_errors(logits[:, :width], batch.suffix[:, :width], tokenizer)
    metrics[f"l1/{m}"] = member[:, m] @ error
  return metrics


def _bin_errors(
  logits: jax.Array, suffix: jax.Array, tokenizer: ActionTokenizer
) -> jax.Array:
  """|likeliest valid bin - target bin| in physical units, float32[B, D]."""
  ids = jnp.asarray(tokenizer.route.ids)
  values = jnp.asarray(tokenizer.bin_values())
  valid = np.arange(NUM_BINS) < np.asarray(tokenizer.sizes)[:, None]
  predicted = jnp.argmax(jnp.where(valid, logits[..., ids], -jnp.inf), -1)
  target = jnp.argmax(suffix[..., None] == ids, -1)
  dimension = jnp.arange(len(tokenizer.space))
  error = values[dimension, predicted] - values[dimension, target]
  # Rows of other sources may hold ids that no bin has.
  return jnp.nan_to_num(jnp.abs(error))

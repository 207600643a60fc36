"""The train state and the train step.

Free of TensorFlow and files: the same step runs on synthetic batches.

Shapes: B examples, F images, R x R pixels, S suffix positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rt2_jax import augment, losses, sharding, step_metrics, trainable, trees
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.compiler_options import TRAINING, options_for
from rt2_jax.masked_actions import hidden_tokens
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import VLM, init_params
from rt2_jax.objectives import OBJECTIVES
from rt2_jax.observation import ONE_CAMERA, ObservationSpec
from rt2_jax.optimizers import rounding

# Keeps the key of stochastic rounding apart from the augmentation's.
_ROUNDING = 0x726F756E


@flax.struct.dataclass
class TrainState:
  """What a step changes.

  Attributes:
    step: int32[], steps done.
    params: the model's parameters, in the dtypes that the trainer says.
    opt_state: the optimizer's, of the parameters that train.
    ema: running mean of those that train; None when the trainer keeps none.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any = None

  @property
  def acting(self) -> Any:
    """Returns the parameters to act with: the running mean, if kept."""
    return trainable.filled(self.ema or {}, self.params)


@dataclasses.dataclass(frozen=True)
class Trainer:
  """The train step, and all of it that stays the same from step to step.

  Attributes:
    model: sizes of the model.
    optimizer: from `optimizer.make_optimizer`.
    augmentation: how training images are changed; of each source's images by
      its part of `fractions`, see `augment.row_fractions`.
    action_tokenizers: of each source, None for a web source.
    seed: of the parameters and the augmentation.
    mesh: where everything lives.
    microbatches: parts that a batch is computed in, one after the other; more
      of them need less memory for activations and give the same update.
    trained: patterns of the names of parameters that train.
    frozen: patterns of the names of parameters that do not.
    param_dtype: of the matrices and tables that train.
    frozen_dtype: of the frozen ones.
    ema_decay: of the running mean of the parameters, 0 for none.
    objective: one of `objectives.OBJECTIVES`.
    masked_fraction: of an action's tokens, see `masked_actions`.
    observation: cameras of the model, and which of them may be cropped.
    module: computes the model.
    skips_bad_steps: a step with a bad gradient changes nothing but the step.
    largest_gradient: global norm above which a gradient is bad.
  """

  model: VLMConfig
  optimizer: optax.GradientTransformation
  augmentation: augment.Augmentation
  action_tokenizers: Sequence[ActionTokenizer | None]
  seed: int
  mesh: Mesh
  microbatches: int = 1
  trained: tuple[str, ...] = (".*",)
  frozen: tuple[str, ...] = ()
  param_dtype: str = "float32"
  frozen_dtype: str = "float32"
  ema_decay: float = 0.0
  objective: str = "answers"
  observation: ObservationSpec = ONE_CAMERA
  module: type[VLM] = VLM
  skips_bad_steps: bool = False
  largest_gradient: float = math.inf
  fractions: tuple[float, ...] = ()
  masked_fraction: float = 0.0

  def abstract_state(self) -> TrainState:
    """ShapeDtypeStructs with shardings; allocates nothing.

    Raises:
      UserError: a frozen pattern without a name, or a mesh that cannot split.
    """
    shapes = jax.eval_shape(self._init)
    shardings = sharding.state_shardings(shapes, self.mesh)
    return sharding.abstract(shapes, shardings)

  def init_state(self) -> TrainState:
    """Draws a fresh state on the devices where it will live."""
    with jax.set_mesh(self.mesh):
      return jax.jit(self._init, out_shardings=self._state_shardings())()

  def to_items(self, state: TrainState) -> tuple[Any, Any]:
    """Splits a state into the items of a checkpoint.

    Returns:
      What a policy acts with, and all else that training needs to go on. Both
      are without the frozen base where the model has adapters.
    """
    acting, params = self._kept(state.acting), self._kept(state.params)
    if state.ema is None:
      return acting, state.opt_state
    return acting, {"params": params, "optimizer": state.opt_state}

  def from_items(
    self, step: jax.Array, acting: Any, rest: Any, base: Any = None
  ) -> TrainState:
    """Joins the items of a checkpoint to a state.

    Args:
      step: steps done.
      acting: from `to_items`.
      rest: likewise.
      base: parameters of the model without its adapters, where it has some.
    """

    def whole(params):
      return trainable.filled(params, base) if self.model.adapted else params

    if not self.ema_decay:
      return TrainState(step, whole(acting), rest)
    params, mean = whole(rest["params"]), self._split(whole(acting))[1]
    return TrainState(step, params, rest["optimizer"], mean)

  def frozen_of(self, params: Any) -> dict:
    """Selects the parameters that do not train."""
    return self._split(params)[0]

  def state_from(self, params: Any) -> TrainState:
    """Makes a state at step 0 from loaded parameters, which are donated.

    Adapters, which they lack, are drawn.
    """
    start = jax.jit(
      self._start, out_shardings=self._state_shardings(), donate_argnums=0
    )
    with jax.set_mesh(self.mesh):
      return start(params)

  def compile_step(self) -> Callable[[TrainState, Batch], tuple]:
    """Compiles `train_step` for the mesh; the old state is donated."""
    return self._on_mesh(self._jitted_step())

  def lower_step(self, batch: Batch) -> jax.stages.Lowered:
    """Lowers `train_step`, without compiling it or holding its devices.

    Args:
      batch: of ShapeDtypeStructs.
    """
    return self._on_mesh(self._jitted_step().lower)(
      self.abstract_state(), batch
    )

  def training_images(self, batch: Batch, step: int | jax.Array) -> jax.Array:
    """Augments a batch's images: float32[B, F, R, R, 3] in [-1, 1].

    A constant key and the step's number: the same images after a restart.
    """
    key = jax.random.fold_in(jax.random.key(self.seed), step)
    spec = self.observation
    return augment.augment(
      batch.image,
      self.model.img.image_size,
      self.augmentation,
      key,
      batch.image_size,
      [camera not in spec.uncropped for camera in spec.cameras],
      augment.row_fractions(self.fractions, batch.source),
    )

  def train_step(
    self, state: TrainState, batch: Batch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Updates the state by one batch.

    Args:
      state: before the step.
      batch: the global batch.

    Returns:
      The state after the step, and metrics: `step_metrics.per_source`, and
      global norms.
    """
    images = self.training_images(batch, state.step)
    hiding = self.masked_fraction, self.seed, state.step
    hidden = hidden_tokens(batch, self.action_tokenizers, *hiding)
    frozen, trained = self._split(state.params)
    grads, metrics = self._gradients(trained, frozen, images, batch, hidden)
    updates, opt_state = self.optimizer.update(
      grads, state.opt_state, trainable.float32(trained)
    )
    trained = rounding.add_updates(trained, updates, self._rounding_key(state))
    params = trees.join(frozen, trained)
    metrics |= {
      "gradient_norm": optax.tree.norm(grads),
      "update_norm": optax.tree.norm(updates),
      "parameter_norm": optax.tree.norm(trainable.float32(trained)),
    }
    ema = self._moved_mean(state.ema, trained)
    new = TrainState(state.step + 1, params, opt_state, ema)
    return self._unless_bad(new, state, metrics)

  def _unless_bad(
    self, new: TrainState, old: TrainState, metrics: dict[str, jax.Array]
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Keeps the old state where the gradient is bad, and counts such steps."""
    if not self.skips_bad_steps:
      return new, metrics
    norm, loss = metrics["gradient_norm"], metrics["loss"].sum()
    # Also false for a norm that is not a number.
    good = (norm <= self.largest_gradient) & jnp.isfinite(norm + loss)
    kept = jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
    metrics["skipped"] = 1 - good.astype(jnp.int32)
    return dataclasses.replace(kept, step=new.step), metrics

  def _rounding_key(self, state: TrainState) -> jax.Array:
    """Derives stochastic rounding's key from the seed and the step."""
    key = jax.random.fold_in(jax.random.key(self.seed), state.step)
    return jax.random.fold_in(key, _ROUNDING)

  def _gradients(self, trained, frozen, *inputs):
    """Computes the microbatches' mean gradient, and the sums of metrics."""

    def gradients_of(part):
      found = jax.grad(self._loss, has_aux=True)(trained, frozen, *part)
      return trainable.float32(found)

    if self.microbatches == 1:
      return gradients_of(inputs)
    parts = jax.tree.map(self._parts, inputs)
    one = jax.tree.map(lambda x: x[0], parts)
    nothing = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients_of, one)
    )

    def add(total, part):
      return jax.tree.map(jnp.add, total, gradients_of(part)), None

    (grads, metrics), _ = jax.lax.scan(add, nothing, parts)
    return jax.tree.map(lambda g: g / self.microbatches, grads), metrics

  def _loss(self, trained, frozen, images, batch, hidden):
    """Computes the mean loss of the examples, and their metrics."""
    params = trees.join(frozen, trained)
    several_cameras = self.observation.several_cameras
    mask_image = augment.shown(batch.image_size) if several_cameras else None
    logits, batch = OBJECTIVES[self.objective](
      self.module(self.model), params, images, mask_image, batch, hidden
    )
    counted = batch.mask_loss if hidden is None else batch.mask_loss * ~hidden
    loss = losses.answer_loss(logits, batch.suffix, counted)
    return loss.mean(), step_metrics.per_source(
      loss, logits, batch, self.action_tokenizers
    )

  def _parts(self, x: jax.Array) -> jax.Array:
    """Reshapes [B, …] to [microbatches, B / microbatches, …] in place.

    Part i takes rows i, i + microbatches, …, so that each device's own rows
    are spread over all parts.
    """
    x = x.reshape(-1, self.microbatches, *x.shape[1:]).swapaxes(0, 1)
    names = (None, "batch") + (None,) * (x.ndim - 2)
    return nn.with_logical_constraint(x, names)

  def _moved_mean(self, mean, params):
    if not self.ema_decay:
      return None
    decay = self.ema_decay
    return jax.tree.map(lambda m, p: decay * m + (1 - decay) * p, mean, params)

  def _init(self) -> TrainState:
    return self._start(init_params(self.model, jax.random.key(self.seed)))

  def _kept(self, params: Any) -> Any:
    """Selects the parameters that a checkpoint holds."""
    return self._split(params)[1] if self.model.adapted else params

  def _with_adapters(self, params: Any) -> Any:
    drawn = init_params(self.model, jax.random.key(self.seed))
    return trainable.filled(params, drawn)

  def _start(self, params: Any) -> TrainState:
    if self.model.adapted:
      params = self._with_adapters(params)
    frozen, trained = self._split(params)
    trained = trainable.stored(trained, self.param_dtype)
    params = trees.join(trainable.stored(frozen, self.frozen_dtype), trained)
    exact = trainable.float32(trained)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=self.optimizer.init(exact),
      # A copy: params and ema are both donated to the step.
      ema=jax.tree.map(jnp.copy, exact) if self.ema_decay else None,
    )

  def _split(self, params: Any) -> tuple[dict, dict]:
    """Splits parameters into (frozen, trained)."""
    return trainable.split(params, self.trained, self.frozen)

  def _state_shardings(self) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, self.abstract_state())

  def _jitted_step(self):
    shardings = self._state_shardings()
    return jax.jit(
      self.train_step,
      in_shardings=(shardings, sharding.batch_sharding(self.mesh)),
      out_shardings=(shardings, sharding.replicated(self.mesh)),
      donate_argnums=0,
      compiler_options=options_for(self.mesh, TRAINING),
    )

  def _on_mesh(self, call: Callable) -> Callable:
    @functools.wraps(call)
    def on_mesh(*args):
      with sharding.scope(self.mesh):
        return call(*args)

    return on_mesh

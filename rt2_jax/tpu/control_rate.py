"""Predicts the control rate of a policy on one TPU chip, without a TPU.

One action is what `Policy` compiles: image path, encoder, prefill with a
drafted action and the passes that verify it, with the compiler options that it
sets. How many passes there are depends on the robot, see `PASSES`. The training
step has `train_step`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rt2_jax import sharding
from rt2_jax.errors import UserError
from rt2_jax.held_params import as_read, held_params
from rt2_jax.policy import Policy
from rt2_jax.tpu import prediction, train_step
from rt2_jax.tpu.chips import SLICES
from rt2_jax.tpu.prediction import Prediction
from rt2_jax.train_config import TrainConfig

# Measured on the tabletop of the quick start, see docs/step_time.md: the draft
# is the robot's last action.
PASSES = 2.21


@dataclasses.dataclass(frozen=True)
class ControlRate(Prediction):
  """A config's policy on one chip; its batch are the robots of one call.

  Attributes:
    passes: over each answer, on average.
    int8: whether matrices are held in 8 bits.
  """

  passes: float
  int8: bool

  @property
  def hz(self) -> float | None:
    """Actions per second of each robot; host and camera not counted."""
    return 1.0 / self.cost.step_s if self.fits else None

  def to_json(self) -> dict[str, Any]:
    rate = {"passes": self.passes, "hz": self.hz and round(self.hz, 1)}
    bits = {"int8": True} if self.int8 else {}
    return super().to_json() | rate | bits


def smallest_slice(topology: str) -> str:
  """Names one chip of the same generation: "v5e:1x1" for "v5e:16x16"."""
  generation = topology.partition(":")[0] + ":"
  return next(name for name in SLICES if name.startswith(generation))


def predict(
  config: TrainConfig,
  topology: str,
  mode: str,
  num_robots: int = 1,
  passes: float = PASSES,
  int8: bool = False,
) -> ControlRate:
  """Compiles a config's acting for one chip of a slice.

  Args:
    config: of the policy.
    topology: the slice.
    mode: of `ahead_of_time.MODES`.
    num_robots: that one call serves.
    passes: over each answer, on average; the first is within the prefill.
    int8: whether matrices are held in 8 bits, see `weights.int8`.

  Raises:
    UserError: an unknown slice or mode, actions that are not written in rare
      tokens, or plans before them; or no `libtpu`.
    RuntimeError: the compiler failed.
  """
  action = prediction.predict(
    topology,
    lower_action,
    (config, num_robots, int8),
    num_robots,
    mode,
    passes - 1,
  )
  return ControlRate(**vars(action), passes=passes, int8=int8)


def lower_action(
  devices: list[jax.Device],
  config: TrainConfig,
  num_robots: int,
  int8: bool = False,
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """Lowers one call of a config's policy, for `ahead_of_time.compile_for`."""
  action_tokenizers = train_step.stand_in_action_tokenizers(config)
  if not action_tokenizers:
    raise UserError(
      f"got config.actions.route = {config.actions.route!r}, expected 'rare': "
      "other routes depend on the tokenizer's file"
    )
  if config.prompt.plan_length:
    raise UserError(
      f"got config.prompt.plan_length = {config.prompt.plan_length}, expected "
      "0: how many tokens a plan takes is not known ahead; pass "
      "--config.prompt.plan_length=0 for the action alone"
    )
  mesh = sharding.make_mesh({}, devices[:1])
  whole = sharding.replicated(mesh)
  shapes = jax.eval_shape(
    functools.partial(as_read, mesh=mesh), held_params(config.model)
  )
  if int8:
    from rt2_jax.weights.int8 import quantize  # needs a package of its own

    shapes = jax.eval_shape(quantize, shapes)
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes
  )
  action_tokenizer = next(iter(action_tokenizers.values()))
  spec = config.observation.spec
  policy = Policy(config.model, params, None, action_tokenizer, spec, mesh)

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((num_robots, *shape), dtype, sharding=whole)

  positions = config.prompt.prefix_length
  inputs = (
    array(jnp.uint8, config.model.num_images, *train_step.CAMERA, 3),
    array(jnp.int32, config.model.num_images, 2),
    array(jnp.int32, positions),
    array(jnp.bool_, positions),
    array(jnp.int32, action_tokenizer.answer_length),
  )
  facts = {
    "parameters": train_step.bytes_per_chip(params),
    "argument_bytes": train_step.bytes_per_chip((params, inputs)),
  }
  return policy.lower_decode(*inputs), mesh, facts

"""How often a policy on one TPU chip would act, without a TPU.

One action is what `Policy` compiles: image path, encoder, prefill and the
tokens of an action, with the compiler options that it sets. See `planning` for
the training step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rt2_jax import ahead_of_time, hlo_cost, planning, sharding
from rt2_jax.chips import SLICES, Torus, chip_of
from rt2_jax.policy import Policy, held_params
from rt2_jax.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class ControlRate:
  """A config's policy on one chip; times are compiler-predicted.

  Attributes:
    topology: a slice, of which one chip acts.
    num_robots: that are served by one call.
    mode: of `ahead_of_time.MODES`.
    fits: whether it fits into the chip's memory.
    hbm_bytes: what it needs there.
    hbm_limit_bytes: what the chip has.
    parameter_bytes: part of it.
    cost: of one action; None where the compiler made no schedule.
  """

  topology: str
  num_robots: int
  mode: str
  fits: bool
  hbm_bytes: float
  hbm_limit_bytes: float
  parameter_bytes: float
  cost: hlo_cost.Cost | None

  @property
  def hz(self) -> float | None:
    """Actions per second of each robot; host and camera not counted."""
    return 1.0 / self.cost.step_s if self.fits else None

  def to_json(self) -> dict[str, Any]:
    """As `planning.Plan.to_json`, with `hz`; null for what acting has not."""
    cost = self.cost if self.fits else None
    return {
      "topology": self.topology,
      "chips": 1,
      "mesh": "x".join("1" for _ in sharding.MESH_AXES),
      "batch_size": self.num_robots,
      "mode": self.mode,
      "fits": self.fits,
      "hbm_gb_per_chip": round(self.hbm_bytes / 1e9, 2),
      "step_s": cost and round(cost.step_s, 6),
      "compute_s": cost and round(cost.compute_s, 6),
      "exposed_comm_s": cost and round(cost.exposed_comm_s, 6),
      "mfu": None,
      "examples_per_s": cost and round(self.num_robots * self.hz, 1),
      "chip_hours": None,
      "hz": cost and round(self.hz, 1),
    }


def smallest_slice(topology: str) -> str:
  """Of the same generation, e.g. "v5e:1x1" for "v5e:16x16"."""
  generation = topology.partition(":")[0] + ":"
  return next(name for name in SLICES if name.startswith(generation))


def predict(
  config: TrainConfig, topology: str, mode: str, num_robots: int = 1
) -> ControlRate:
  """Compiles a config's acting for one chip of a slice.

  Raises:
    ValueError: an unknown slice or mode, actions that are not written in rare
      tokens, or plans before them.
    RuntimeError: no `libtpu`, or the compiler failed.
  """
  compiled = ahead_of_time.compile_for(
    topology, lower_action, (config, num_robots), mode
  )
  chip = chip_of(topology)
  cost = None
  if compiled.fits:
    torus = Torus(chip, compiled.coords)
    cost = hlo_cost.predict(compiled.hlo, torus, estimates=mode == "full")
  return ControlRate(
    topology=topology,
    num_robots=num_robots,
    mode=mode,
    fits=compiled.fits and compiled.hbm_bytes <= chip.hbm_bytes,
    hbm_bytes=compiled.hbm_bytes,
    hbm_limit_bytes=chip.hbm_bytes,
    parameter_bytes=compiled.facts["parameters"],
    cost=cost,
  )


def lower_action(
  devices: list[jax.Device], config: TrainConfig, num_robots: int
) -> tuple[jax.stages.Lowered, Mesh, dict]:
  """One call of a config's policy, for `ahead_of_time.compile_for`."""
  tokenizers = planning.stand_in_tokenizers(config)
  if not tokenizers:
    raise ValueError(
      f"got config.actions.route = {config.actions.route!r}, expected 'rare': "
      "other routes depend on the tokenizer's file"
    )
  if config.prompt.plan_length:
    raise ValueError(
      f"got config.prompt.plan_length = {config.prompt.plan_length}, expected "
      "0: how many tokens a plan takes is not known ahead; pass "
      "--config.prompt.plan_length=0 for the action alone"
    )
  mesh = sharding.make_mesh({}, devices[:1])
  whole = sharding.replicated(mesh)
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
    held_params(config.model),
  )
  policy = Policy(
    config.model, params, None, next(iter(tokenizers.values())), mesh
  )

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((num_robots, *shape), dtype, sharding=whole)

  columns = config.prompt.prefix_length
  inputs = (
    array(jnp.uint8, config.model.num_frames, *planning.CAMERA, 3),
    array(jnp.int32, 2),
    array(jnp.int32, columns),
    array(jnp.bool_, columns),
  )
  facts = {
    "parameters": planning.bytes_per_chip(params),
    "argument_bytes": planning.bytes_per_chip((params, inputs)),
  }
  return policy.lower_decode(*inputs), mesh, facts

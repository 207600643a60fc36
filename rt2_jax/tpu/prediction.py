"""Predicts memory and time of a program on a TPU slice, without a TPU.

The TPU's compiler plans memory and schedule (`ahead_of_time`); the time is read
from the schedule (`hlo_cost`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from rt2_jax.tpu import ahead_of_time, hlo_cost
from rt2_jax.tpu.chips import Torus, chip_of


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One program on one slice; times are compiler-predicted.

  Attributes:
    topology: the slice.
    mode: of `ahead_of_time.MODES`.
    mesh: chips along each axis.
    batch_size: rows of one call, all chips together.
    fits: whether it fits into a chip's memory.
    hbm_bytes: what it needs there.
    hbm_limit_bytes: what a chip has.
    facts: what the program's author says of it.
    cost: of the schedule; None where the compiler made none, as it does for a
      program that is far too large.
  """

  topology: str
  mode: str
  mesh: Mapping[str, int]
  batch_size: int
  fits: bool
  hbm_bytes: float
  hbm_limit_bytes: float
  facts: Mapping[str, Any]
  cost: hlo_cost.Cost | None

  @property
  def chips(self) -> int:
    return math.prod(self.mesh.values())

  def to_json(self) -> dict[str, Any]:
    """Flattens to one JSON object; null where the program does not fit."""
    cost = self.cost if self.fits else None
    return {
      "topology": self.topology,
      "chips": self.chips,
      "mesh": "x".join(map(str, self.mesh.values())),
      "batch_size": self.batch_size,
      "mode": self.mode,
      "fits": self.fits,
      "hbm_gb_per_chip": round(self.hbm_bytes / 1e9, 2),
      "step_s": cost and round(cost.step_s, 6),
      "compute_s": cost and round(cost.compute_s, 6),
      "exposed_comm_s": cost and round(cost.exposed_comm_s, 6),
      "examples_per_s": cost and round(self.batch_size / cost.step_s, 1),
    }


def predict(
  topology: str,
  lower: Callable[..., tuple[jax.stages.Lowered, Mesh, dict]],
  arguments: Sequence[Any],
  batch_size: int,
  mode: str,
  turns: float = 1.0,
) -> Prediction:
  """Compiles a program for a slice.

  Args:
    topology: see `ahead_of_time.devices`.
    lower: see `ahead_of_time.compile_for`.
    arguments: likewise.
    batch_size: rows of one call, all chips together.
    mode: of `ahead_of_time.MODES`.
    turns: see `hlo_cost.predict`.

  Raises:
    UserError: an unknown slice or mode, or what `lower` raises; or no `libtpu`.
    RuntimeError: the compiler failed.
  """
  compiled = ahead_of_time.compile_for(topology, lower, arguments, mode)
  chip = chip_of(topology)
  cost = None
  if compiled.fits:
    torus = Torus(chip, compiled.coords)
    estimates = mode == "full"
    cost = hlo_cost.predict(compiled.hlo, torus, estimates, turns)
  return Prediction(
    topology=topology,
    mode=mode,
    mesh=compiled.mesh,
    batch_size=batch_size,
    # In "fast" mode the compiler is stopped before it would complain.
    fits=compiled.fits and compiled.hbm_bytes <= chip.hbm_bytes,
    hbm_bytes=compiled.hbm_bytes,
    hbm_limit_bytes=chip.hbm_bytes,
    facts=compiled.facts,
    cost=cost,
  )

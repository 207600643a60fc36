"""Describes, reads, averages and writes checkpoints on disk.

For programs that change or describe a checkpoint without training or acting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rt2_jax import storage, trees
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.errors import UserError
from rt2_jax.models.variants import VLMConfig
from rt2_jax.weights.checks import check_all_finite


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
  """One step of a run.

  Attributes:
    folder: of this step.
    meta: what the checkpoint says of itself, in today's format.
    tokenizer: the SentencePiece model.
    shapes: jax.ShapeDtypeStruct of each parameter, by its flat name.
    has_optimizer: whether training can go on from it.
  """

  folder: storage.Path
  meta: dict[str, Any]
  tokenizer: bytes
  shapes: dict[str, jax.ShapeDtypeStruct]
  has_optimizer: bool

  @classmethod
  def open(
    cls, workdir: str | os.PathLike, step: int | None = None
  ) -> StoredCheckpoint:
    """Reads all but the arrays.

    Args:
      workdir: of a run, or its folder `checkpoints`.
      step: which checkpoint; default: the newest.

    Raises:
      UserError: no such checkpoint.
    """
    with contextlib.closing(Checkpoints.open_run(workdir)) as checkpoints:
      meta, tokenizer = checkpoints.restore_meta(step)
      return cls(
        checkpoints.step_folder(step),
        CheckpointMeta.from_dict(meta).to_dict(),
        tokenizer,
        trees.flatten(checkpoints.stored_params(step)),
        checkpoints.has_optimizer(step),
      )

  @property
  def step(self) -> int:
    return int(self.folder.name)

  @property
  def model(self) -> VLMConfig:
    return VLMConfig.from_dict(self.meta["model"])

  def check_merged(self):
    """Checks that the parameters are those of a whole model.

    Raises:
      UserError: they are adapters beside a base.
    """
    if self.meta["base"]:
      raise UserError(
        f"got {self.folder}, which holds the adapters of a LoRA run alone; "
        f"make it whole first: python launch/convert.py merge "
        f"--workdir={self.folder.parent.parent} --output=…"
      )

  def check_adapted(self):
    """Checks that the parameters are adapters beside a base.

    Raises:
      UserError: they are those of a whole model.
    """
    if not self.meta["base"]:
      raise UserError(
        f"got {self.folder} without adapters, expected a checkpoint of a LoRA "
        "run"
      )

  def read_params(self) -> dict:
    """Reads the parameters in their stored types, onto one device.

    Raises:
      UserError: a parameter that is not finite.
    """
    shapes = trees.unflatten(self.shapes)
    with contextlib.closing(Checkpoints(self.folder.parent)) as checkpoints:
      params = checkpoints.restore_params(shapes, self.step)
    check_all_finite(self.folder, trees.flatten(params))
    return params


def write(
  params: dict,
  meta: Mapping[str, Any],
  tokenizer: bytes,
  step: int,
  workdir: str | os.PathLike,
) -> storage.Path:
  """Writes a checkpoint without optimizer state, to act from.

  Returns:
    Its folder.

  Raises:
    UserError: the workdir has checkpoints already, or a parameter is not
      finite; then nothing is written.
  """
  folder = storage.locate(workdir, "--output") / "checkpoints"
  if folder.exists():
    raise UserError(f"got output {folder}, which exists; choose another")
  check_all_finite(folder, trees.flatten(params))
  with contextlib.closing(Checkpoints(folder)) as checkpoints:
    checkpoints.save(step, params, None, meta, tokenizer)
    checkpoints.wait()
  return folder / str(step)


def average(checkpoints: Sequence[StoredCheckpoint]) -> dict:
  """Averages the parameters of several checkpoints, in their types.

  The sum is float32; two checkpoints are in memory at a time.

  Args:
    checkpoints: of one model.

  Raises:
    UserError: fewer than two, one of them twice, or different models.
  """
  steps = [checkpoint.step for checkpoint in checkpoints]
  if len(steps) < 2 or len({each.folder for each in checkpoints}) < len(steps):
    raise UserError(
      f"got the steps {steps} to average, expected two or more, each once"
    )
  *_, last = checkpoints
  for other in checkpoints:
    if other.shapes != last.shapes or other.meta["model"] != last.meta["model"]:
      raise UserError(
        f"got {other.folder} and {last.folder}, which are different models; "
        "average checkpoints of one run"
      )
  total = None
  for checkpoint in checkpoints:
    params = jax.tree.map(
      lambda x: np.asarray(x, np.float32), checkpoint.read_params()
    )
    total = params if total is None else jax.tree.map(np.add, total, params)
  return jax.tree.map(
    lambda x, like: (x / len(checkpoints)).astype(like.dtype),
    total,
    trees.unflatten(last.shapes),
  )

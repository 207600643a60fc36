"""A checkpoint as it lies on disk: looked at, read as stored, copied, averaged.

For programs that change or describe a checkpoint without training or acting.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rt2_jax import trees
from rt2_jax.checkpoint import Checkpoints, abstract

# What acting needs, and what only training on needs.
_COPIED = ("progress", "meta", "tokenizer")
_OPTIMIZER = "opt_state"


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
  """One step of a run.

  Attributes:
    folder: of this step.
    meta: what the checkpoint says of itself.
    tokenizer: the SentencePiece model.
    shapes: jax.ShapeDtypeStruct of each parameter, by its flat name.
  """

  folder: pathlib.Path
  meta: dict[str, Any]
  tokenizer: bytes
  shapes: dict[str, jax.ShapeDtypeStruct]

  @classmethod
  def open(
    cls, workdir: str | pathlib.Path, step: int | None = None
  ) -> StoredCheckpoint:
    """Reads all but the arrays.

    Args:
      workdir: of a run, or its folder `checkpoints`.
      step: which checkpoint; default: the newest.

    Raises:
      ValueError: no such checkpoint.
    """
    checkpoints = Checkpoints.open_run(workdir)
    meta, tokenizer = checkpoints.restore_meta(step)
    step = checkpoints.latest_step() if step is None else step
    checkpoints.close()
    root = pathlib.Path(workdir).absolute()
    if (root / "checkpoints").is_dir():
      root = root / "checkpoints"
    folder = root / str(step)
    with ocp.StandardCheckpointer() as reader:
      tree = reader.metadata(folder / "params").item_metadata.tree
    shapes = {
      name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
      for name, leaf in trees.flatten(tree).items()
    }
    return cls(folder, meta, tokenizer, shapes)

  @property
  def step(self) -> int:
    return int(self.folder.name)

  @property
  def has_optimizer(self) -> bool:
    """Whether training can go on from it."""
    return (self.folder / _OPTIMIZER).is_dir()

  def read_params(self) -> dict:
    """The parameters in the types in which they are stored, on one device."""
    tree = trees.unflatten(self.shapes)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as reader:
      return reader.restore(
        self.folder / "params",
        abstract(tree, jax.tree.map(lambda _: device, tree)),
      )

  def strip(self, workdir: str | pathlib.Path) -> pathlib.Path:
    """Copies all but the optimizer state, byte for byte.

    Returns:
      The folder of the new checkpoint, the same step of `workdir`.

    Raises:
      ValueError: it exists already.
    """
    target = self._copy(workdir)
    shutil.copytree(self.folder / "params", target / "params")
    return target

  def _copy(self, workdir: str | pathlib.Path) -> pathlib.Path:
    """Copies what is no array of the model's."""
    target = pathlib.Path(workdir).absolute() / "checkpoints" / str(self.step)
    if target.exists():
      raise ValueError(f"got output {target}, which exists; choose another")
    target.mkdir(parents=True)
    for item in _COPIED:
      shutil.copytree(self.folder / item, target / item)
    for file in self.folder.iterdir():
      if file.is_file():
        shutil.copy2(file, target)
    return target


def average(
  checkpoints: Sequence[StoredCheckpoint], workdir: str | pathlib.Path
) -> pathlib.Path:
  """Writes the mean of several checkpoints' parameters, as the last of them.

  The sum is float32, whatever the type of the parameters, and takes the place
  of one of them in memory.

  Args:
    checkpoints: of one model, oldest first.
    workdir: gets a checkpoint without optimizer state.

  Returns:
    Its folder.

  Raises:
    ValueError: fewer than two, checkpoints of different models, or the folder
      exists already.
  """
  *_, last = checkpoints
  if len(checkpoints) < 2:
    raise ValueError("got one checkpoint to average, expected two or more")
  for other in checkpoints:
    if other.shapes != last.shapes or other.meta["model"] != last.meta["model"]:
      raise ValueError(
        f"got {other.folder} and {last.folder}, which are different models; "
        "average checkpoints of one run"
      )
  target = last._copy(workdir)
  total = None
  for checkpoint in checkpoints:
    params = jax.tree.map(
      lambda x: np.asarray(x, np.float32), checkpoint.read_params()
    )
    total = params if total is None else jax.tree.map(np.add, total, params)
  mean = jax.tree.map(
    lambda x, like: (x / len(checkpoints)).astype(like.dtype),
    total,
    trees.unflatten(last.shapes),
  )
  with ocp.StandardCheckpointer() as writer:
    writer.save(target / "params", mean)
  return target

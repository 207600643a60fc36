"""Reads and verifies the base of a LoRA run: the weights it does not train.

A checkpoint holds what trains; `meta.base` says where the rest came from,
with a hash and the checksum of every array. Whatever reads the base compares it
with these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax

from rt2_jax import checksums, sharding, shipped, storage, trees
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.differences import json_hash
from rt2_jax.errors import UserError
from rt2_jax.models import lora
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import abstract_params
from rt2_jax.saved_step import CHECKSUMS, Damaged, SavedStep
from rt2_jax.weights import pretrained
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

# What a run starts from: `TrainConfig.pretrained`.
Source = str | Mapping[str, str]


def is_run(source: Source) -> bool:
  """Tells a run's workdir from a file or folder of weights."""
  if not isinstance(source, str) or not source:
    return False
  return (storage.locate(source, "config.pretrained") / "checkpoints").is_dir()


def read(
  source: Source,
  config: VLMConfig,
  params: Any,
  seed: int = 0,
  kept: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
  """Reads the weights of a model, without adapters.

  Args:
    source: as `TrainConfig.pretrained` has it.
    config: of the model.
    params: ShapeDtypeStructs with shardings, of all its parameters; adapters
      are left out.
    seed: of what a source lacks, see `pretrained.load`.
    kept: checksums of arrays by their names; a run that went on is read at the
      checkpoint that holds them, otherwise at its newest.

  Raises:
    UserError: no such weights, or those of another model.
  """
  flat = trees.flatten(params)
  names = flat.keys() - lora.adapters(flat)
  wanted = trees.unflatten({name: flat[name] for name in flat if name in names})
  if kept:
    _check_there(source)
  if is_run(source):
    run = Checkpoints.open_run(source)
    return run.restore_params(wanted, _step_with(run, kept) if kept else None)
  return pretrained.load(
    source,
    config.without_adapters(),
    jax.tree.map(lambda x: x.sharding, wanted),
    jax.tree.map(lambda x: str(x.dtype), wanted),
    seed,
  )


def _check_there(source: Source):
  """Raises a UserError for a base that is not where a run found it."""
  for path in [source] if isinstance(source, str) else source.values():
    place = storage.locate(shipped.find(path), "config.pretrained").absolute()
    if not place.exists():
      raise UserError(
        f"got no {place}, expected the base that the adapters were trained on, "
        "where the run found it; put it there again, or run "
        "`launch/convert.py merge` where it is"
      )


def _step_with(
  run: Checkpoints, kept: Mapping[str, Mapping[str, str]]
) -> int | None:
  """Finds the newest checkpoint of a run that holds arrays; None if none does.

  Args:
    run: whose checkpoints keep checksums, too.
    kept: checksums of the arrays, by their names.
  """
  for step in reversed(run.steps()):
    with contextlib.suppress(Damaged):
      stored = SavedStep(run.step_folder(step)).meta.get(CHECKSUMS, {})
      found = {
        name: checksums.Measured(sums, finite=True)
        for name, sums in stored.get("params", {}).items()
      }
      if kept.keys() <= found.keys() and not _other(found, kept):
        return step
  return None


def record(source: Source, frozen: Any, seed: int) -> dict[str, Any]:
  """Describes a base for a checkpoint's `meta`.

  Args:
    source: where it was read.
    frozen: its arrays that do not train.
    seed: it was read with.
  """
  sums = _sums(frozen)
  weights = source if isinstance(source, str) else dict(source)
  return {
    "weights": weights,
    "seed": seed,
    "hash": _hash(sums),
    "checksums": sums,
  }


def check(stored: Mapping[str, Any], frozen: Any):
  """Compares a base with the one that a checkpoint was trained on.

  Args:
    stored: the checkpoint's `meta.base`.
    frozen: arrays of the same names.

  Raises:
    UserError: it is another base.
  """
  found = checksums.measure(frozen)
  kept = stored["checksums"]
  other = sorted(found.keys() ^ kept.keys()) + _other(found, kept)
  if other:
    got = _hash({name: array.sums for name, array in found.items()})
    raise UserError(
      f"got the base {stored['weights']} with hash {got}, which differs in "
      f"{len(other)} arrays such as {other[0]}, expected the one with hash "
      f"{stored['hash']} that the adapters were trained on; put it back, or "
      "start a new run"
    )


def restore(
  checkpoints: Checkpoints,
  meta: CheckpointMeta,
  params: Any,
  step: int | None = None,
) -> dict[str, Any]:
  """Restores a checkpoint's parameters, with its base where it names one.

  Args:
    checkpoints: of the run.
    meta: of the checkpoint.
    params: ShapeDtypeStructs with shardings, of all parameters.
    step: which checkpoint; default: the newest.

  Raises:
    UserError: no such checkpoint; its base is not there, or is another one.
  """
  if not meta.base:
    return checkpoints.restore_params(params, step)
  own = trees.flatten(checkpoints.stored_params(step)).keys()
  flat = trees.flatten(params)
  trained = trees.unflatten({n: x for n, x in flat.items() if n in own})
  kept = meta.base["checksums"]
  as_trained = {n: _as_trained(x, kept.get(n, {})) for n, x in flat.items()}
  source = meta.base["weights"], meta.model, trees.unflatten(as_trained)
  base = trees.flatten(read(*source, meta.base["seed"], kept))
  frozen = trees.unflatten({n: x for n, x in base.items() if n not in own})
  check(meta.base, frozen)
  frozen = {n: x.astype(flat[n].dtype) for n, x in base.items() if n not in own}
  return trees.join(
    checkpoints.restore_params(trained, step), trees.unflatten(frozen)
  )


def restore_whole(checkpoint: StoredCheckpoint) -> dict[str, Any]:
  """Restores adapters and base in float32, on one device.

  Raises:
    UserError: the base is not there, or is another one.
  """
  meta = CheckpointMeta.from_dict(checkpoint.meta)
  shapes = abstract_params(meta.model)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  placed = sharding.abstract(shapes, jax.tree.map(lambda _: device, shapes))
  with contextlib.closing(Checkpoints(checkpoint.folder.parent)) as run:
    return restore(run, meta, placed, checkpoint.step)


def _as_trained(x: Any, kept: Mapping[str, str]) -> Any:
  """Returns the type and sharding in which the adapters met an array."""
  rounded = kept.keys() == {"bfloat16"}
  dtype = "bfloat16" if rounded else x.dtype
  return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)


def _other(
  found: Mapping[str, checksums.Measured], kept: Mapping[str, Any]
) -> list[str]:
  """Lists the arrays that are other ones than those whose sums were kept."""
  both = found.keys() & kept.keys()
  return [n for n in both if checksums.differs(found[n], kept[n]) is not False]


def _sums(frozen: Any) -> dict[str, dict[str, str]]:
  measured = checksums.measure(frozen)
  return {name: array.sums for name, array in measured.items()}


def _hash(sums: Mapping[str, Mapping[str, str]]) -> str:
  """Hashes a base to sixteen hex digits, equal in float32 and bfloat16."""
  rounded = {name: kinds["bfloat16"] for name, kinds in sums.items()}
  return json_hash(rounded)[:16]

"""Checkpoints: everything to go on training, and everything to act.

One Orbax checkpoint holds the items `params`, `opt_state`, `progress` (the
step, which is also the position in the data), `meta` (config, model, prompt,
action tokenizers, image path, versions) and `tokenizer` (the file itself). A
`Policy` needs nothing else, and no `opt_state`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rt2_jax.errors import UserError

_ARRAYS, _JSON = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
_ITEMS = {
  "params": _ARRAYS,
  "opt_state": _ARRAYS,
  "progress": _JSON,
  "meta": _JSON,
  "tokenizer": _ARRAYS,
}
_VERSIONED = ("jax", "flax", "optax", "orbax-checkpoint")


def versions() -> dict[str, str]:
  """Versions of the libraries that shape a checkpoint."""
  return {name: importlib.metadata.version(name) for name in _VERSIONED}


class Checkpoints:
  """The checkpoints of one run, written in the background."""

  def __init__(self, folder: str | pathlib.Path, keep: int | None = None):
    """`keep`: how many of the newest checkpoints stay; None keeps all."""
    self._folder = pathlib.Path(folder).absolute()
    self._manager = ocp.CheckpointManager(
      self._folder,
      item_handlers={name: handler() for name, handler in _ITEMS.items()},
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )

  @classmethod
  def open_run(cls, folder: str | pathlib.Path) -> Checkpoints:
    """Those of a run's workdir, or of its folder `checkpoints`.

    Raises:
      UserError: there is no such folder.
    """
    folder = pathlib.Path(folder)
    if (folder / "checkpoints").is_dir():
      folder = folder / "checkpoints"
    if not folder.is_dir():
      raise UserError(
        f"got checkpoint folder {str(folder)!r}, which does not exist; pass "
        "the --workdir of a training run"
      )
    return cls(folder)

  def latest_step(self) -> int | None:
    """The newest complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    params: Any,
    opt_state: Any,
    meta: Mapping[str, Any],
    tokenizer: bytes,
  ):
    """Writes a checkpoint; returns once the arrays have been copied.

    A process that dies while writing leaves the older checkpoints intact:
    a checkpoint appears under its name only when it is complete. Without
    `opt_state` (None) it is one to act from.
    """
    model_file = np.frombuffer(tokenizer, np.uint8)
    items = {
      "params": ocp.args.StandardSave(params),
      "progress": ocp.args.JsonSave({"step": step}),
      "meta": ocp.args.JsonSave(dict(meta)),
      "tokenizer": ocp.args.StandardSave({"model": model_file}),
    }
    if opt_state is not None:
      items["opt_state"] = ocp.args.StandardSave(opt_state)
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def step_folder(self, step: int | None = None) -> pathlib.Path:
    """Where a checkpoint lies; default: the newest.

    Raises:
      UserError: no such checkpoint.
    """
    return self._folder / str(self._existing(step))

  def has_optimizer(self, step: int | None = None) -> bool:
    """Whether training can go on from a checkpoint; default: the newest."""
    return (self.step_folder(step) / "opt_state").is_dir()

  def stored_params(self, step: int | None = None) -> Any:
    """ShapeDtypeStructs of the parameters as they are stored; reads no array.

    They are placed on one device, for `restore_params`.
    """
    tree = self._manager.item_metadata(self._existing(step)).params.tree
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return abstract(tree, jax.tree.map(lambda _: device, tree))

  def restore_meta(self, step: int | None = None) -> tuple[dict, bytes]:
    """The items `meta` and `tokenizer`.

    Raises:
      UserError: no such checkpoint, or a damaged tokenizer.
    """
    step = self._existing(step)
    spec = ocp.args.Composite(
      meta=ocp.args.JsonRestore(), tokenizer=ocp.args.StandardRestore()
    )
    items = self._manager.restore(step, args=spec)
    tokenizer = np.asarray(items.tokenizer["model"]).tobytes()
    found = hashlib.sha256(tokenizer).hexdigest()
    if found != items.meta["tokenizer_sha256"]:
      raise UserError(
        f"{self._folder}/{step}: got a tokenizer with sha256 {found}, expected "
        f"{items.meta['tokenizer_sha256']}; the checkpoint is damaged"
      )
    return items.meta, tokenizer

  def restore_params(self, abstract: Any, step: int | None = None) -> Any:
    """Parameters alone, placed as the ShapeDtypeStructs in `abstract` say."""
    step = self._existing(step)
    spec = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    return self._manager.restore(step, args=spec).params

  def restore_state(self, params: Any, opt_state: Any) -> tuple[int, Any, Any]:
    """The newest (step, params, opt_state), on any mesh or number of hosts.

    Args:
      params: ShapeDtypeStructs with shardings.
      opt_state: likewise.

    Raises:
      UserError: no checkpoint, or one to act from only.
    """
    step = self._existing(None)
    if not self.has_optimizer(step):
      raise UserError(
        f"got checkpoint {self.step_folder(step)} without optimizer state, "
        "which is to act from; use the workdir of the run that it was made of"
      )
    spec = ocp.args.Composite(
      params=ocp.args.StandardRestore(params),
      opt_state=ocp.args.StandardRestore(opt_state),
      progress=ocp.args.JsonRestore(),
    )
    items = self._manager.restore(step, args=spec)
    return items.progress["step"], items.params, items.opt_state

  def wait(self):
    """Returns when what was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self):
    self._manager.close()

  def _existing(self, step: int | None) -> int:
    steps = self._manager.all_steps()
    if not steps or (step is not None and step not in steps):
      raise UserError(
        f"got checkpoint step {step or 'latest'} in {self._folder}, expected "
        f"one of {list(steps) or 'none: there is no checkpoint'}"
      )
    return max(steps) if step is None else step


def abstract(tree: Any, shardings: Any) -> Any:
  """ShapeDtypeStructs of `tree` with the given shardings."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )

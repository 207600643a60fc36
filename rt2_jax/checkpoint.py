"""Checkpoints: everything to go on training, and everything to act.

One Orbax checkpoint holds the items `params`, `opt_state`, `progress` (the
step, which is also the position in the data), `meta` (config, model, prompt,
action tokenizers, image path, versions) and `tokenizer` (the file itself). A
`Policy` needs nothing else.
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

_ITEMS = ("params", "opt_state", "progress", "meta", "tokenizer")
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
      item_names=_ITEMS,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )

  @classmethod
  def open_run(cls, folder: str | pathlib.Path) -> Checkpoints:
    """Those of a run's workdir, or of its folder `checkpoints`.

    Raises:
      ValueError: there is no such folder.
    """
    folder = pathlib.Path(folder)
    if (folder / "checkpoints").is_dir():
      folder = folder / "checkpoints"
    if not folder.is_dir():
      raise ValueError(
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
    a checkpoint appears under its name only when it is complete.
    """
    model_file = np.frombuffer(tokenizer, np.uint8)
    args = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      opt_state=ocp.args.StandardSave(opt_state),
      progress=ocp.args.JsonSave({"step": step}),
      meta=ocp.args.JsonSave(dict(meta)),
      tokenizer=ocp.args.StandardSave({"model": model_file}),
    )
    self._manager.save(step, args=args, force=True)

  def restore_meta(self, step: int | None = None) -> tuple[dict, bytes]:
    """The items `meta` and `tokenizer`.

    Raises:
      ValueError: no such checkpoint, or a damaged tokenizer.
    """
    step = self._existing(step)
    spec = ocp.args.Composite(
      meta=ocp.args.JsonRestore(), tokenizer=ocp.args.StandardRestore()
    )
    items = self._manager.restore(step, args=spec)
    tokenizer = np.asarray(items.tokenizer["model"]).tobytes()
    found = hashlib.sha256(tokenizer).hexdigest()
    if found != items.meta["tokenizer_sha256"]:
      raise ValueError(
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
    """
    step = self._existing(None)
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
      raise ValueError(
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

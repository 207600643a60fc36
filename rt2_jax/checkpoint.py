"""Checkpoints: everything to resume training, and everything to act.

One Orbax checkpoint holds the items `params`, `opt_state`, `progress` (the
step, which is also the position in the data), `meta` (config, model, prompt,
action tokenizers, data, versions, checksums) and `tokenizer` (the file itself).
A `Policy` needs nothing else, and no `opt_state`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from rt2_jax import (
  checksums,
  consensus,
  interrupts,
  orbax_manager,
  sharding,
  storage,
)
from rt2_jax.differences import json_hash
from rt2_jax.errors import UserError, first_line
from rt2_jax.saved_step import (
  CHECKSUMS,
  STORE_REFUSES,
  SavedStep,
  steps_in,
)

_LOG = logging.getLogger(__name__)

_UNFINISHED = ".orbax-checkpoint-tmp"
_REFUSED = re.compile(
  "No space left on device|Disk quota exceeded|File too large|"
  f"Read-only file system|Permission denied|{STORE_REFUSES}"
)
_VERSIONED = ("jax", "flax", "optax", "orbax-checkpoint")


class CannotWriteError(UserError):
  """The disk or bucket takes no more; nothing that was saved is lost."""


class Restored(NamedTuple):
  """The train state of a checkpoint, as its items.

  Attributes:
    params: the parameters to act with.
    opt_state: everything else that training needs.
    window: metrics that were not logged yet, from `Progress.before_save`.
  """

  params: Any
  opt_state: Any
  window: dict[str, Any]


def versions() -> dict[str, str]:
  """Versions of the libraries that shape a checkpoint."""
  return {name: importlib.metadata.version(name) for name in _VERSIONED}


class Checkpoints:
  """The checkpoints of one run, written in the background.

  A context manager: what was saved is complete when it is left.
  """

  def __init__(self, folder: str | os.PathLike, keep: int | None = None):
    """Reads and creates nothing yet.

    Args:
      folder: of the checkpoints.
      keep: how many of the newest checkpoints stay; None keeps all.

    Attributes:
      best: the step of one more checkpoint that stays.

    Raises:
      UserError: see `storage.locate`; or a store that TensorStore cannot write.
    """
    self.best: int | None = None
    self._folder = storage.locate(folder, "--workdir").absolute()
    orbax_manager.check_store(self._folder)
    self._keep = keep
    self._manager: ocp.CheckpointManager | None = None

  @classmethod
  def open_run(cls, folder: str | os.PathLike) -> Checkpoints:
    """Opens those of a run's workdir, or of its folder `checkpoints`.

    Raises:
      UserError: there is no such folder.
    """
    folder = storage.locate(folder, "--workdir")
    if (folder / "checkpoints").is_dir():
      folder = folder / "checkpoints"
    if not folder.is_dir():
      raise UserError(
        f"got checkpoint folder {str(folder)!r}, which does not exist; pass "
        "the --workdir of a training run"
      )
    return cls(folder)

  def __enter__(self) -> Checkpoints:
    orbax_manager.check_name(self._folder)
    return self

  def __exit__(self, kind, error, trace):
    try:
      self.close()
    except Exception as failure:
      if error is None:
        raise
      # The error that ends the run is the one to show.
      _LOG.error(
        "the last checkpoint was not completed: %s", first_line(failure)
      )

  def steps(self) -> list[int]:
    """Lists the complete checkpoints, the oldest first."""
    return steps_in(self._folder)

  def latest_step(self) -> int | None:
    """Returns the newest complete checkpoint, None if there is none."""
    return max(self.steps(), default=None)

  def existing_step(self, step: int | None = None) -> int:
    """Returns the step of an existing checkpoint; default: the newest.

    Raises:
      UserError: no such checkpoint.
    """
    steps = self.steps()
    if not steps or (step is not None and step not in steps):
      raise UserError(
        f"got checkpoint step {'(newest)' if step is None else step} in "
        f"{self._folder}, expected one of "
        f"{steps or 'none: there is no checkpoint; pass the workdir of a run'}"
      )
    return max(steps) if step is None else step

  def save(
    self,
    step: int,
    params: Any,
    opt_state: Any,
    meta: Mapping[str, Any],
    tokenizer: bytes,
    window: Mapping[str, Any] | None = None,
  ):
    """Writes a checkpoint; returns once the arrays have been copied.

    A process that dies while writing leaves the older checkpoints intact:
    a checkpoint appears under its name only when it is complete. Without
    `opt_state` (None) it is inference-only. A Ctrl-C waits for the copy.

    Raises:
      UserError: an array is not finite, or see `orbax_manager.check_name`;
        nothing is saved then.
      CannotWriteError: the disk is full, now or since the last `save`.
    """
    model_file = np.frombuffer(tokenizer, np.uint8)
    kept = {"params": self._measured(step, params, "params")}
    if opt_state is not None:
      kept["opt_state"] = self._measured(step, opt_state, "opt_state")
    meta = dict(meta) | {CHECKSUMS: kept}
    progress = {"step": step, "meta_sha256": json_hash(meta)}
    items = {
      "params": ocp.args.StandardSave(params),
      "progress": ocp.args.JsonSave(progress | {"window": dict(window or {})}),
      "meta": ocp.args.JsonSave(meta),
      "tokenizer": ocp.args.StandardSave({"model": model_file}),
    }
    if opt_state is not None:
      items["opt_state"] = ocp.args.StandardSave(opt_state)
    with interrupts.delayed(f"copying checkpoint {step}"), self._writing():
      if self._manager is None:
        self._manager = orbax_manager.make(self._folder, self._stays)
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def step_folder(self, step: int | None = None) -> storage.Path:
    """Returns a checkpoint's folder; default: the newest.

    Raises:
      UserError: no such checkpoint.
    """
    return self._folder / str(self.existing_step(step))

  def has_optimizer(self, step: int | None = None) -> bool:
    """Tells whether training can resume from it; default: the newest."""
    return self._saved(step).has_optimizer

  def stored_params(self, step: int | None = None) -> Any:
    """ShapeDtypeStructs of the parameters as they are stored; reads no array.

    They are placed on one device, for `restore_params`.

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    shapes = self._saved(step).shapes()
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return sharding.abstract(shapes, jax.tree.map(lambda _: device, shapes))

  def restore_meta(self, step: int | None = None) -> tuple[dict, bytes]:
    """Restores the items `meta`, without checksums, and `tokenizer`.

    Raises:
      UserError: no such checkpoint, or a damaged one.
    """
    saved = self._saved(step)
    meta = {key: v for key, v in saved.meta.items() if key != CHECKSUMS}
    return meta, saved.tokenizer

  def restore_params(self, abstract: Any, step: int | None = None) -> Any:
    """Parameters alone, placed as the ShapeDtypeStructs in `abstract` say.

    Raises:
      UserError: no such checkpoint; a damaged one, or one whose parameters are
        not finite.
    """
    return self._saved(step).arrays("params", abstract)

  def restore_state(
    self, params: Any, opt_state: Any, step: int | None = None
  ) -> Restored:
    """Restores all that training needs, on any mesh or number of hosts.

    Args:
      params: ShapeDtypeStructs with shardings.
      opt_state: likewise.
      step: which checkpoint; default: the newest.

    Raises:
      UserError: no checkpoint, an inference-only one, or one of another
        optimizer.
      Damaged: it cannot be read, is not what was saved, or is not finite.
    """
    saved = self._saved(step)
    saved.check_optimizer()
    return Restored(
      saved.arrays("params", params),
      saved.arrays("opt_state", opt_state),
      saved.progress.get("window", {}),
    )

  def set_aside(self, step: int) -> storage.Path:
    """Moves a damaged checkpoint out of the way; deletes nothing.

    Returns:
      Its new folder, beside that of the checkpoints.
    """
    place = self._folder.with_name("damaged_checkpoints")
    taken = len(list(place.glob(f"{step}*")))
    target = place / (f"{step}-{taken}" if taken else str(step))
    with consensus.together():
      if jax.process_index() == 0:
        storage.move(self._folder / str(step), target)
    return target

  def check(self):
    """Raises CannotWriteError if the background has failed to write."""
    if self._manager is not None:
      with self._writing():
        self._manager.check_for_errors()

  def wait(self):
    """Returns when what was saved is on disk; raises as `check`."""
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def give_up(self):
    """Abandons what is being written, so that `save` can be tried again."""
    manager, self._manager = self._manager, None
    if manager is not None:
      with contextlib.suppress(Exception):  # the one that is known
        manager.close()
    with consensus.together():
      if jax.process_index() == 0:
        for unfinished in self._folder.glob(f"*{_UNFINISHED}*"):
          storage.remove(unfinished)

  def close(self):
    """Completes what was saved, also after a Ctrl-C."""
    if self._manager is None:
      return
    manager, self._manager = self._manager, None
    with interrupts.delayed("completing the last checkpoint"), self._writing():
      manager.close()

  def _stays(self, steps: Sequence[int]) -> list[bool]:
    """Tells which of the saved steps, the oldest first, are kept."""
    first = 0 if self._keep is None else len(steps) - self._keep
    return [i >= first or step == self.best for i, step in enumerate(steps)]

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Names the folder when its disk refuses; Orbax may say so much later."""
    try:
      yield
    except Exception as error:
      refused = _REFUSED.search(f"{type(error).__name__}: {error}")
      if not refused and not isinstance(error, OSError):
        raise
      raise CannotWriteError(
        f"got checkpoint folder {self._folder}, which cannot be written: "
        f"{refused[0] if refused else first_line(error)}; free some room, or "
        "let this program write there, and start again to go on from "
        f"{self._newest()}"
      ) from error

  def _newest(self) -> str:
    """Says what a run goes on from; a store that refuses may not tell."""
    try:
      newest = self.latest_step()
    except UserError:
      return "the newest checkpoint"
    return "the start" if newest is None else f"step {newest}"

  def _measured(self, step: int, tree: Any, item: str) -> dict[str, dict]:
    """Computes the checksums that `meta` keeps, by the arrays' names.

    Raises:
      UserError: a number is not finite.
    """
    found = checksums.measure(tree)
    bad = [name for name, array in found.items() if not array.finite]
    if bad:
      raise UserError(
        f"got {len(bad)} arrays at step {step} that are not finite, such as "
        f"{item} {bad[0]}, expected finite numbers; nothing was saved, all is "
        f"good up to {self._newest()}"
      )
    return {name: array.sums for name, array in found.items()}

  def _saved(self, step: int | None) -> SavedStep:
    return SavedStep(self.step_folder(step))

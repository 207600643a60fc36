"""Orbax's manager of checkpoints, with the settings that this package needs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from rt2_jax import storage
from rt2_jax.errors import UserError

ARRAYS, JSON = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
_ITEMS = {
  "params": ARRAYS,
  "opt_state": ARRAYS,
  "progress": JSON,
  "meta": JSON,
  "tokenizer": ARRAYS,
}
_SMALLEST_SLICE = 1 << 20  # bytes
_STORES = ("gs://", "s3://")
# Orbax globs below its folder, and TensorStore parses it as a URL: a name with
# one of these leads to other files, or to none.
_WILD = "*?[\\#"


@dataclasses.dataclass
class _Preserved(preservation_policy.PreservationPolicy):
  """Which checkpoints stay, of the steps that are saved, the oldest first."""

  stays: Callable[[Sequence[int]], Sequence[bool]]

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    del context
    return self.stays([each.step for each in checkpoints])


def check_store(folder: storage.Path):
  """Raises UserError for a store that TensorStore has no driver for."""
  if storage.is_url(folder) and not str(folder).startswith(_STORES):
    raise UserError(
      f"got checkpoint folder {folder}, expected one on this machine or one of "
      f"{', '.join(f'{store}…' for store in _STORES)}; choose another --workdir"
    )


def check_name(folder: storage.Path):
  """Raises UserError for a folder whose name Orbax writes past.

  It says nothing then, and none of its checkpoints can be read.
  """
  wild = _WILD if storage.is_url(folder) else _WILD.removesuffix("#")
  found = [letter for letter in wild if letter in str(folder)]
  if found:
    raise UserError(
      f"got checkpoint folder {folder}, expected a path without "
      f"{' '.join(found)}: arrays would be written elsewhere and lost; choose "
      "another --workdir"
    )


def make(
  folder: storage.Path, stays: Callable[[Sequence[int]], Sequence[bool]]
) -> ocp.CheckpointManager:
  """Makes a manager that writes in the background.

  Args:
    folder: of the checkpoints.
    stays: tells which of the saved steps, the oldest first, are kept.

  Raises:
    UserError: see `check_name`.
  """
  check_name(folder)
  # Orbax lets each replica write a slice of what is replicated, and compiles
  # a program for each slice: seconds, for arrays that take no time to write.
  handler = ocp.type_handlers.ArrayHandler(
    min_slice_bytes_for_replica_parallel=_SMALLEST_SLICE
  )
  before = logging.root.manager.disable
  logging.disable(logging.WARNING)  # of an override, which is meant
  try:
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
  finally:
    logging.disable(before)
  return ocp.CheckpointManager(
    str(folder),
    item_handlers={name: handler() for name, handler in _ITEMS.items()},
    # Lightweight: a damaged description of an old checkpoint is not read.
    options=ocp.CheckpointManagerOptions(
      preservation_policy=_Preserved(stays), lightweight_initialize=True
    ),
  )

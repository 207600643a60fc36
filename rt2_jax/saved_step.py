"""One checkpoint as it is read: compared with what was saved.

Arrays are compared with the checksums in `meta`, `meta` with its hash in
`progress`, the tokenizer with its own. A checkpoint from before there were any
is read all the same, and the log says that nothing was compared.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rt2_jax import checksums, consensus, storage
from rt2_jax.differences import json_hash
from rt2_jax.errors import UserError, first_line
from rt2_jax.orbax_manager import ARRAYS, JSON

_LOG = logging.getLogger(__name__)

CHECKSUMS = "checksums"  # key of `meta`: item -> array -> type -> checksum
_STEP_NAME = re.compile("0|[1-9][0-9]*")
# An object store's refusals, in the words of TensorStore and of gcsfs.
STORE_REFUSES = (
  "PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|HttpError|Forbidden"
)
# The machine's trouble, not the checkpoint's.
_NO_DAMAGE = re.compile(
  "MemoryError|RESOURCE_EXHAUSTED|Permission|Too many open files|"
  "Client[A-Z]\\w*Error|ServerDisconnected|TimeoutError|"
  f"{STORE_REFUSES}"
)


class Damaged(UserError):
  """A checkpoint that cannot be read, or is not what was saved."""


def steps_in(folder: storage.Path) -> list[int]:
  """Lists the complete checkpoints of a folder, the oldest first."""
  with storage.named_in_errors(folder, verb="read"):
    found = ocp.utils.checkpoint_steps_paths(str(folder))
  # Orbax reads 50 from the names 050 and copy_50, too, and finds no folder 50.
  return sorted(int(p.name) for p in found if _STEP_NAME.fullmatch(p.name))


class SavedStep:
  """The checkpoint of one step; every method raises `Damaged` if it is."""

  def __init__(self, folder: storage.Path):
    """Reads nothing yet; `folder` is named by the step."""
    self.folder = folder
    self.step = int(folder.name)

  @property
  def has_optimizer(self) -> bool:
    """Tells whether training can go on from it."""
    return (self.folder / "opt_state").is_dir()

  @functools.cached_property
  def meta(self) -> dict[str, Any]:
    """Reads the item `meta`, with its checksums."""
    kept = self.progress.get("meta_sha256")

    def read():
      meta = JSON().restore(self._item("meta"))
      if kept is not None and kept != json_hash(meta):
        raise ValueError("it is not what was saved")
      return meta

    return self._read("meta", read)

  @functools.cached_property
  def progress(self) -> dict[str, Any]:
    """Reads the item `progress`: the step, and metrics not logged yet."""

    def read():
      progress = JSON().restore(self._item("progress"))
      if progress["step"] != self.step:
        raise ValueError(f"it says step {progress['step']}")
      return progress

    return self._read("progress", read)

  @property
  def tokenizer(self) -> bytes:
    """Reads the item `tokenizer`, a SentencePiece model."""
    array = self._read("tokenizer", lambda: self._arrays("tokenizer")["model"])
    tokenizer = np.asarray(array).tobytes()
    found = hashlib.sha256(tokenizer).hexdigest()
    expected = self.meta["tokenizer_sha256"]
    if found != expected:
      raise self._damaged(
        f"got a tokenizer with sha256 {found}, expected {expected}"
      )
    return tokenizer

  def shapes(self) -> Any:
    """ShapeDtypeStructs of the stored parameters, without a sharding."""

    def read():
      with contextlib.closing(ARRAYS()) as handler:
        return handler.metadata(self._item("params")).tree

    return self._read("params", read)

  def arrays(self, item: str, abstract: Any) -> Any:
    """Restores `params` or `opt_state`, placed as `abstract` says.

    Raises:
      UserError: the checkpoint has other arrays.
      Damaged: they cannot be read, are not what was saved, or not finite.
    """
    kept = self._checksums(item, abstract)
    tree = self._read(item, lambda: self._arrays(item, abstract))
    for name, array in checksums.measure(tree).items():
      if checksums.differs(array, kept.get(name, {})):
        raise self._damaged(
          f"{item} {name} has another checksum than when it was saved"
        )
      if not array.finite:
        raise self._damaged(f"{item} {name} is not finite")
    return tree

  def check_optimizer(self):
    """Checks that there is an optimizer state.

    Raises:
      UserError: an inference-only checkpoint.
      Damaged: the state was saved, and is gone.
    """
    if self.has_optimizer:
      return
    if "opt_state" in self.meta.get(CHECKSUMS, {}):
      raise self._damaged("its optimizer state is gone")
    raise UserError(
      f"got checkpoint {self.folder} without optimizer state, which is "
      "inference-only; use the workdir of the run that it was made of"
    )

  def _checksums(self, item: str, abstract: Any) -> dict[str, dict]:
    """Looks up the checksums of an item; empty in an old checkpoint."""
    if CHECKSUMS not in self.meta:
      _LOG.warning(
        "%s keeps no checksums of its arrays: nothing to compare", self.folder
      )
      return {}
    kept = self.meta[CHECKSUMS][item]
    other = sorted(set(kept) ^ set(checksums.names(abstract)))
    if other:
      raise UserError(
        f"got checkpoint {self.folder} whose {item} has other arrays than this "
        f"config's, such as {other[0]}; expected one of the same model and "
        "optimizer: use another --workdir"
      )
    return kept

  def _read(self, what: str, read: Callable[[], Any]) -> Any:
    """Calls `read` on all processes; if one fails, all name the checkpoint.

    Raises:
      Damaged: it fails for another reason than the machine's.
    """
    value = None
    try:
      with consensus.together():
        value = read()
    except Damaged:
      raise
    except Exception as error:
      if _NO_DAMAGE.search(f"{type(error).__name__}: {error}"):
        raise
      raise self._damaged(f"{what}: {first_line(error)}") from error
    return value

  def _arrays(self, item: str, abstract: Any = None) -> Any:
    args = ocp.args.StandardRestore(abstract)
    with contextlib.closing(ARRAYS()) as handler:
      return handler.restore(self._item(item), args=args)

  def _item(self, name: str) -> epath.Path:
    return epath.Path(str(self.folder)) / name

  def _damaged(self, cause: str) -> Damaged:
    others = [s for s in steps_in(self.folder.parent) if s != self.step]
    advice = "there is no other one"
    if others:
      advice = f"the others are {others}: pass --step={others[-1]}"
    return Damaged(
      f"got checkpoint {self.folder}, which is damaged ({cause}); {advice}"
    )

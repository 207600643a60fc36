"""How far the writing of web records has come: kept, and gone on with.

Shards grow side by side in a folder of their own. Every few thousand examples
they are brought to the disk, and then the file `progress.json` says how long
they are and how much of the input they hold.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.record_files import RecordFile
from rt2_jax.differences import to_json
from rt2_jax.errors import UserError
from rt2_jax.storage import write

FILE = "progress.json"
_NAMED = 3  # examples that an error names
_ENOUGH = 1000  # examples, after which a fraction says something


@dataclasses.dataclass
class Progress:
  """What was written of an input.

  Attributes:
    settings: what says which records an input gives.
    sizes: bytes of each shard.
    consumed: examples of the input that were read.
    written: of those, the ones in the shards.
    skipped: one line for each of the others.
    is_done: whether the shards hold all of the input.
  """

  settings: Mapping[str, Any]
  sizes: list[int]
  consumed: int = 0
  written: int = 0
  skipped: list[str] = dataclasses.field(default_factory=list)
  is_done: bool = False

  @classmethod
  def find(cls, folder: Path, settings: Mapping[str, Any]) -> Progress | None:
    """Reads how far a stopped program came; None with other settings."""
    path = folder / FILE
    if not path.exists():
      return None
    found = cls(**json.loads(path.read_text()))
    return found if found.settings == to_json(settings) else None

  @classmethod
  def begin(
    cls, folder: Path, settings: Mapping[str, Any], num_shards: int
  ) -> Progress:
    """Begins anew.

    What was written with other settings, or of another input, is removed.
    """
    if (folder / FILE).exists():
      print(f"{folder}: was of another input or of other flags; starts anew")
    if folder.exists():
      shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return cls(to_json(settings), [0] * num_shards)

  def open_files(self, folder: Path) -> list[RecordFile]:
    """Opens the shards where they were left."""
    return [
      RecordFile(shard_path(folder, i), size)
      for i, size in enumerate(self.sizes)
    ]

  def save(self, folder: Path, files: list[RecordFile]):
    """Brings the shards to the disk, and then says so."""
    self.sizes = [file.flush() for file in files]
    write(folder / FILE, json.dumps(dataclasses.asdict(self)))

  def check(self, max_skipped: float, is_done: bool = False):
    """Compares the fraction that cannot be used with what may be.

    Raises:
      UserError: it is larger; the first examples are named.
    """
    allowed = max_skipped * self.consumed
    if len(self.skipped) <= allowed or not (
      is_done or self.consumed >= _ENOUGH
    ):
      return
    raise UserError(
      f"got {len(self.skipped):,} of {self.consumed:,} examples that cannot be "
      f"used, expected at most {max_skipped:.2%}: "
      f"{'; '.join(self.skipped[:_NAMED])}; repair them, or pass a larger "
      "--max_skipped"
    )


def shard_path(folder: Path, number: int) -> Path:
  """Names the file in which a shard grows."""
  return folder / f"{number:05d}"

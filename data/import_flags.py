"""The flags that all importers share, and what they decide."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import flags

from data.recordings import local_input
from rt2_jax.errors import UserError
from rt2_jax.images import check_sides

_WRITER_VERSION = 1  # raise it where the same recordings give other records
# Flags of importers that say which recordings are read, and what of them.
_SOURCE = ("instruction", "action", "state", "episodes", "pictures")
_SOURCE += ("video_path",)


class Options(NamedTuple):
  """How recordings are imported; the fields are flags.

  Attributes:
    name: of the data set, and of its folder.
    image_size: `HEIGHTxWIDTH`; "" keeps that of the recording.
    jpeg_quality: of the pictures.
    val_every: every n-th episode is for validation; 0: none.
    episodes_per_shard: at most.
    max_skipped: episodes that may be left out because they are damaged.
    num_workers: processes; 1 does all in this one, None starts one for each
      CPU.
    unit: see `derived_description.state_units`, as of the next two.
    units: likewise.
    gripper: likewise.
    rotation: see `conversions`.
    motion: likewise.
    robot: a robot.json to use in place of a derived one; "" derives it.
    source: the flags that say what is read, see `from_flags`.
  """

  name: str
  image_size: str = ""
  jpeg_quality: int = 95
  val_every: int = 0
  episodes_per_shard: int = 10
  max_skipped: int = 0
  num_workers: int | None = None
  unit: str = ""
  units: Sequence[str] = ()
  gripper: Sequence[str] = ()
  rotation: Sequence[str] = ()
  motion: Sequence[str] = ()
  robot: str = ""
  source: Mapping[str, Any] = MappingProxyType({})

  @property
  def size(self) -> tuple[int, int] | None:
    """Height and width of the pictures; None keeps those of the recording.

    Raises:
      UserError: no size, or one that training would refuse.
    """
    if not self.image_size:
      return None
    match = re.fullmatch(r"(\d+)x(\d+)", self.image_size)
    if not match:
      raise UserError(
        f"got --image_size={self.image_size!r}, expected HEIGHTxWIDTH such as "
        "256x320"
      )
    height, width = int(match[1]), int(match[2])
    check_sides(height, width)
    return height, width

  def settings(self) -> dict[str, Any]:
    """Names all flags that decide which records an import gives."""
    return {
      "image_size": self.image_size,
      "jpeg_quality": self.jpeg_quality,
      "val_every": self.val_every,
      "episodes_per_shard": self.episodes_per_shard,
      "rotation": list(self.rotation),
      "motion": list(self.motion),
      "source": dict(self.source),
      "writer_version": _WRITER_VERSION,
    }

  def description(self) -> dict[str, Any]:
    """Names all flags that decide what a derived robot.json says."""
    return {
      "unit": self.unit,
      "units": list(self.units),
      "gripper": list(self.gripper),
    }


def define_flags():
  """Defines the flags that all importers share."""
  flags.DEFINE_string("input", None, "What to import", required=True)
  flags.DEFINE_string("output_dir", None, "Gets NAME/1.0.0/", required=True)
  flags.DEFINE_string("name", None, "Of the data set", required=True)
  flags.DEFINE_list("cameras", [], "NAME=CAMERA; default: all of them")
  flags.DEFINE_string("instruction", "", "In place of the recorded texts")
  flags.DEFINE_string("image_size", "", "HEIGHTxWIDTH; default: as recorded")
  flags.DEFINE_integer("jpeg_quality", 95, "Of the pictures", 1, 100)
  flags.DEFINE_integer("val_every", 0, "Every n-th episode is validation", 0)
  flags.DEFINE_integer("episodes_per_shard", 10, "At most", 1)
  flags.DEFINE_integer("max_skipped", 0, "Damaged episodes to leave out", 0)
  flags.DEFINE_integer("num_workers", None, "Processes; default: all CPUs", 1)
  flags.DEFINE_string("unit", "", "Of numbers that no other flag names")
  flags.DEFINE_multi_string(
    "units", [], "NAME=UNIT or NAME=UNIT*SCALE; repeat it"
  )
  flags.DEFINE_multi_string(
    "gripper", [], "NAME=OPEN:CLOSED; repeat it for each"
  )
  flags.DEFINE_multi_string("rotation", [], "See data/conversions.py")
  flags.DEFINE_multi_string("motion", [], "See data/conversions.py")
  flags.DEFINE_string("robot", "", "A robot.json, in place of a derived one")


def from_flags(args: flags.FlagValues) -> Options:
  """Reads the options; raises UserError where the input is no place here."""
  names = [name for name in Options._fields if name != "source"]
  source = {
    name: getattr(args, name) for name in _SOURCE if hasattr(args, name)
  }
  source["input"] = os.path.abspath(local_input(args.input, "--input"))
  return Options(**{name: getattr(args, name) for name in names}, source=source)

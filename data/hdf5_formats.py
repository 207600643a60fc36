"""HDF5 files of demonstrations: robomimic, ALOHA, LIBERO, and others by flags.

  robomimic  data/demo_N/{actions, obs/…_image, obs/robot0_eef_pos, …}
  libero     the same with LIBERO's names, and a sentence in an attribute
  aloha      one file an episode: action, observations/{qpos, images/…}

Shapes: T steps of an episode.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from data.recordings import Column, as_table, by_number
from rt2_jax.errors import UserError

_POSE = ("dx", "dy", "dz", "drx", "dry", "drz")
_QUATERNION = ("qx", "qy", "qz", "qw")


@dataclasses.dataclass(frozen=True)
class Hdf5Format:
  """Where a file holds what, and what its numbers mean.

  Attributes:
    episodes: pattern of the groups that are episodes; "" is the whole file.
    action: data set of the actions, below an episode's group.
    state: data sets of the state, side by side; absent ones are left out.
    pictures: pattern of the data sets with pictures.
    columns: what is known of numbers, by the data set that holds them.
    rate_hz: steps per second.
    turned: whether pictures stand on their heads.
    instruction: attribute of an episode or of the file that holds the sentence.
  """

  episodes: str
  action: str
  state: tuple[str, ...]
  pictures: str
  columns: Mapping[str, tuple[Column, ...]]
  rate_hz: float
  turned: bool = False
  instruction: str = ""


def _named(unit: str, *names: str) -> tuple[Column, ...]:
  return tuple(Column(name, unit) for name in names)


# Displacements in units of the controller's largest step (OSC_POSE).
_OSC = (
  *(Column(name, "m", 0.05) for name in _POSE[:3]),
  *(Column(name, "rad", 0.5) for name in _POSE[3:]),
  Column("gripper", gripper=(-1.0, 1.0)),
)
_ARM = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle")
_ARM += ("wrist_rotate",)
# Two ViperX arms: joints in rad, grippers from 0 = closed to 1 = open.
_TWO_ARMS = tuple(
  column
  for side in ("left", "right")
  for column in (
    *_named("rad", *(f"{side}_{joint}" for joint in _ARM)),
    Column(f"{side}_gripper", gripper=(1.0, 0.0)),
  )
)

FORMATS = {
  "libero": Hdf5Format(
    r"data/demo_\d+",
    "actions",
    ("obs/ee_pos", "obs/ee_ori", "obs/gripper_states"),
    r"obs/\w+_rgb",
    {
      "actions": _OSC,
      "obs/ee_pos": _named("m", "x", "y", "z"),
      "obs/ee_ori": _named("rad", "rx", "ry", "rz"),
      "obs/gripper_states": _named("m", "finger_0", "finger_1"),
    },
    20.0,
    turned=True,
    instruction="problem_info",
  ),
  "robomimic": Hdf5Format(
    r"data/demo_\d+",
    "actions",
    ("obs/robot0_eef_pos", "obs/robot0_eef_quat", "obs/robot0_gripper_qpos"),
    r"obs/\w+_image",
    {
      "actions": _OSC,
      "obs/robot0_eef_pos": _named("m", "x", "y", "z"),
      "obs/robot0_eef_quat": _named("quaternion", *_QUATERNION),
      "obs/robot0_gripper_qpos": _named("m", "finger_0", "finger_1"),
    },
    20.0,
  ),
  "aloha": Hdf5Format(
    "",
    "action",
    ("observations/qpos",),
    r"observations/images/\w+",
    {"action": _TWO_ARMS, "observations/qpos": _TWO_ARMS},
    50.0,
  ),
}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
  """Opens a file; errors while it is open are a UserError with its name."""
  try:
    with h5py.File(path, "r") as file:
      yield file
  except (OSError, KeyError) as error:
    raise UserError(
      f"{path}: got an HDF5 file that does not read ({error}); copy it again"
    ) from error


def recognize(file: h5py.File) -> str:
  """Finds out whose format a file has.

  Raises:
    UserError: nobody's that is known.
  """
  groups = demos(file, FORMATS["libero"].episodes)
  if groups:
    names = data_sets(file[groups[0]])
    if any(re.fullmatch(FORMATS["libero"].pictures, name) for name in names):
      return "libero"
    if "actions" in names:
      return "robomimic"
  if {"action", "observations/qpos"} <= set(data_sets(file)):
    return "aloha"
  found = ", ".join(data_sets(file)[:12])
  raise UserError(
    f"{file.filename}: got the data sets {found}, expected those of robomimic, "
    "LIBERO or ALOHA; say with --episodes, --action, --state and --pictures "
    "where this file holds what"
  )


def demos(file: h5py.File, pattern: str) -> list[str]:
  """Names the groups that are episodes, `demo_2` before `demo_10`."""
  if not pattern:
    return ["/"]
  depth = pattern.count("/")
  groups = [""]
  for _ in range(depth + 1):
    groups = [
      f"{group}/{name}".lstrip("/")
      for group in groups
      for name, item in file["/" + group].items()
      if isinstance(item, h5py.Group)
    ]
  found = [group for group in groups if re.fullmatch(pattern, group)]
  return sorted(found, key=by_number)


def data_sets(group: h5py.Group) -> list[str]:
  """Names all data sets below a group."""
  found: list[str] = []

  def visit(name: str, item: h5py.HLObject):
    if isinstance(item, h5py.Dataset):
      found.append(name)

  group.visititems(visit)
  return found


def sentence(group: h5py.Group, attribute: str) -> str:
  """Reads the sentence of an episode; "" where there is none.

  It is an attribute of the episode, of what holds it, or of the file. LIBERO's
  is JSON with the field language_instruction.
  """
  if not attribute:
    return ""
  for place in (group, group.parent, group.file):
    if attribute not in place.attrs:
      continue
    text = place.attrs[attribute]
    text = text.decode() if isinstance(text, bytes) else str(text)
    if not text.lstrip().startswith("{"):
      return text
    told = json.loads(text).get("language_instruction", "")
    return " ".join(told) if isinstance(told, list) else str(told)
  return ""


def columns_of(known: Hdf5Format, name: str, width: int) -> tuple[Column, ...]:
  """Describes a data set's numbers; numbers their names if it is unknown."""
  columns = known.columns.get(name, ())
  if len(columns) == width:
    return columns
  stem = re.split("/", name)[-1]
  return tuple(Column(f"{stem}_{i}") for i in range(width))


def numbers(group: h5py.Group, name: str) -> np.ndarray:
  """Reads a data set of numbers, float64[T, n]."""
  return as_table(group[name], f"values of {name}")

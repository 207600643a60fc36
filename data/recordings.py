"""What importers read: a robot's recordings, whatever their format was.

Shapes: T steps of an episode, A numbers of an action, S of a state.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rt2_jax import storage
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.observation import PRIMARY

Picture = np.ndarray | bytes  # uint8[H, W, 3], or an encoded file


@dataclasses.dataclass(frozen=True)
class Column:
  """One recorded number of an action or a state.

  Attributes:
    name: of the number, such as "elbow".
    unit: of `scale` times the number; "" where the format does not say.
    scale: physical units in a recorded unit.
    gripper: the numbers of an open and of a closed gripper; None for others.
  """

  name: str
  unit: str = ""
  scale: float = 1.0
  gripper: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """What all episodes of a data set have in common.

  Attributes:
    cameras: what the input calls each camera, by its name in the output.
    action: A columns.
    state: S columns; none where no state is recorded.
    rate_hz: steps per second.
  """

  cameras: Mapping[str, str]
  action: tuple[Column, ...]
  state: tuple[Column, ...]
  rate_hz: float


class Recording(NamedTuple):
  """One episode.

  Attributes:
    instruction: T texts.
    action: float[T, A], as recorded.
    state: float[T, S], as recorded.
    images: T pictures of each camera, by its name in the output.
    timestamp: float64[T] in seconds, from any start.
    notes: oddities that did no harm.
  """

  instruction: Sequence[str]
  action: np.ndarray
  state: np.ndarray
  images: Mapping[str, Iterable[Picture]]
  timestamp: np.ndarray
  notes: Sequence[str] = ()


class Recordings(Protocol):
  """A data set that can be imported; it travels to other processes.

  Attributes:
    layout: of every episode.
    names: of each episode, for error messages.
  """

  layout: Layout
  names: Sequence[str]

  def missing(self) -> dict[int, str]:
    """Says by number which episodes lack a file, without reading any."""

  def read(self, number: int) -> Recording:
    """Reads an episode; raises UserError where it is damaged."""


def as_table(values: Any, what: str) -> np.ndarray:
  """Converts the numbers of T steps, of any type and width, to float64[T, n].

  Args:
    values: an array or rows.
    what: they are, for the message.

  Raises:
    UserError: no numbers, or a single one.
  """
  try:
    found = np.asarray(values)
    width = int(np.prod(found.shape[1:]))
    return found.astype(np.float64, casting="same_kind").reshape(
      len(found), width
    )
  except (TypeError, ValueError) as error:
    raise UserError(
      f"got {what} that are no numbers, or not as many in each step ({error}), "
      "expected a row for each; record them again, or drop this episode"
    ) from error


def local_input(path: str, name: str) -> pathlib.Path:
  """Finds recordings on this machine.

  Videos and HDF5 files are read by libraries that know no bucket.

  Raises:
    UserError: see `storage.locate`; or the path is one of an object store.
  """
  found = storage.locate(path, name)
  if isinstance(found, storage.Url):
    raise UserError(
      f"got {name} = {path!r}, expected recordings on this machine; copy them "
      "here first: only the output may lie in a bucket"
    )
  return found


def choose_cameras(
  found: Sequence[str], chosen: Sequence[str] = ()
) -> dict[str, str]:
  """Names the cameras of a data set.

  Args:
    found: what the input calls them.
    chosen: `name=camera` of each that is wanted; none takes all, and calls
      the first one "primary" unless another is called so.

  Returns:
    What the input calls each camera, by its new name.

  Raises:
    UserError: no camera, an unknown one, a name that stands there twice, or
      none that is called primary.
  """
  if not found:
    raise UserError(
      "got a data set without a camera, expected at least one; a robot that "
      "does not see cannot be trained"
    )
  if not chosen:
    called = [c for c in found if PRIMARY in (c, short_name(c))]
    first = PRIMARY if PRIMARY in called else (*called, *found)[0]
    others = [camera for camera in found if camera != first]
    names = [short_name(camera) for camera in others]
    is_clear = len({PRIMARY, *names}) == len(found)
    return {PRIMARY: first} | dict(
      zip(names if is_clear else others, others, strict=True)
    )
  cameras = {}
  for text in chosen:
    name, equals, camera = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*", name):
      raise UserError(
        f"got --cameras={text!r}, expected NAME=CAMERA such as "
        f"{PRIMARY}={found[0]}"
      )
    if camera not in found:
      raise unknown_name("a camera", camera, found)
    if name in cameras:
      raise UserError(
        f"got --cameras={','.join(chosen)}, expected another name for each "
        f"camera: {name!r} stands there twice"
      )
    cameras[name] = camera
  if PRIMARY not in cameras:
    raise UserError(
      f"got --cameras={','.join(chosen)}, expected {PRIMARY!r} among the "
      "names; call the one that sees the scene so"
    )
  return cameras


def by_number(name: str) -> list[int | str]:
  """Sorts `demo_2` before `demo_10`."""
  parts = re.split(r"(\d+)", name)
  return [int(part) if part.isdecimal() else part for part in parts]


def short_name(camera: str) -> str:
  """Shortens `"observation.images.left_wrist"` to `"left_wrist"`."""
  return re.sub(r"\W+", "_", re.split(r"[./]", camera)[-1]).strip("_")


def name_columns(names: Sequence[str] | None, width: int) -> tuple[Column, ...]:
  """Columns of those names, or numbered ones where names do not fit."""
  if names is None or len(names) != width or len(set(names)) < width:
    names = [f"number_{i}" for i in range(width)]
  return tuple(Column(name) for name in names)

"""Imports demonstrations from HDF5 files, for training.

  python -m data.import_hdf5 --input='DIR/*.hdf5' --output_dir=OUT --name=my_arm

reads robomimic's, LIBERO's and ALOHA's files, which it tells apart, and others
by --episodes, --action, --state and --pictures. It writes `OUT/my_arm/1.0.0/`:
the episodes as TFDS lays them out, and robot.json, which says what they mean.
A file that holds no sentence needs --instruction; LIBERO's pictures, which
stand on their heads, are turned. A call that was stopped goes on.
data/README.md tells more. It needs the packages of `pip install -e "[import]"`.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from data import import_flags, import_program
from data.recordings import (
  Layout,
  Picture,
  Recording,
  choose_cameras,
  local_input,
)
from launch import program
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.images import decode, is_jpeg

with program.extra("import"):
  import h5py

  from data import hdf5_formats
  from data.hdf5_formats import FORMATS, Hdf5Format


@dataclasses.dataclass(frozen=True)
class Hdf5Recordings:
  """The episodes of HDF5 files.

  Attributes:
    known: how the files are laid out.
    places: file and group of each episode.
    state: data sets of the state that there are.
    layout: see `recordings.Recordings`.
    instruction: in place of the files' sentences; "" keeps them.
  """

  known: Hdf5Format
  places: tuple[tuple[Path, str], ...]
  state: tuple[str, ...]
  layout: Layout
  instruction: str = ""

  @functools.cached_property
  def names(self) -> list[str]:
    return [
      f"{path.name} {group}".removesuffix(" /") for path, group in self.places
    ]

  def missing(self) -> dict[int, str]:
    """Finds nothing: an episode is all in its file."""
    return {}

  def read(self, number: int) -> Recording:
    """Reads an episode; raises UserError where it is damaged."""
    path, name = self.places[number]
    with hdf5_formats.opened(path) as file:
      return self._read(path, file[name])

  def _read(self, path: Path, group: h5py.Group) -> Recording:
    action = hdf5_formats.numbers(group, self.known.action)
    length = len(action)
    state = {name: hdf5_formats.numbers(group, name) for name in self.state}
    for name, values in state.items():
      if len(values) != length:
        raise UserError(
          f"got {len(values)} steps of {name} and {length} actions, expected "
          "as many; drop this episode"
        )
    told = self.instruction or hdf5_formats.sentence(
      group, self.known.instruction
    )
    if not told.strip():
      raise UserError(
        "got no sentence that says what the robot does; pass --instruction"
      )
    return Recording(
      [told] * length,
      action,
      np.concatenate([np.empty((length, 0)), *state.values()], -1),
      {
        camera: self._pictures(path, f"{group.name}/{place}")
        for camera, place in self.layout.cameras.items()
      },
      np.arange(length) / self.layout.rate_hz,
    )

  def _pictures(self, path: Path, place: str) -> Iterator[Picture]:
    """Yields pictures one by one: all of an episode may fill the memory."""
    with hdf5_formats.opened(path) as file:
      stored = file[place]
      if not isinstance(stored, h5py.Dataset) or not stored.shape:
        raise UserError(
          f"got {stored} in place of pictures, expected one for each step; "
          "leave this camera out with --cameras"
        )
      yield from map(functools.partial(self._picture, place), stored)

  def _picture(self, place: str, stored: np.ndarray | bytes) -> Picture:
    """Reads a picture that is an array, or a file padded to some length."""
    stored = np.asarray(stored)
    if stored.ndim == 1:
      data = np.asarray(stored, np.uint8).tobytes()
      if is_jpeg(data) and not self.known.turned:
        return data.rstrip(b"\0")
      stored = decode(data)
    if stored.dtype != np.uint8 or stored.ndim != 3 or stored.shape[-1] != 3:
      raise UserError(
        f"got pictures {stored.dtype}{list(stored.shape)} in {place}, expected "
        "uint8[H, W, 3] or encoded ones; leave this camera out with --cameras"
      )
    return stored[::-1, ::-1] if self.known.turned else stored


def open_recordings(
  pattern: str,
  cameras: Sequence[str] = (),
  instruction: str = "",
  rate_hz: float | None = None,
  **places: str | Sequence[str],
) -> Hdf5Recordings:
  """Opens the files that match, sorted by name.

  Args:
    pattern: of files, or one folder of them.
    cameras: see `recordings.choose_cameras`.
    instruction: in place of the files' sentences.
    rate_hz: steps per second, in place of the format's usual ones.
    **places: fields of `Hdf5Format` that are not the format's usual ones.

  Raises:
    UserError: no file, one of an unknown format, or of another than the first.
  """
  paths = _files(pattern)
  with hdf5_formats.opened(paths[0]) as file:
    known = _format(file, rate_hz, places)
    first = _groups(file, known)[0]
    found = hdf5_formats.data_sets(file[first])
    state = tuple(name for name in known.state if name in found)
    layout = _layout(file[first], known, state, found, cameras)
  all_places = tuple(
    (path, group) for path in paths for group in _groups_of(path, known)
  )
  return Hdf5Recordings(known, all_places, state, layout, instruction)


def _files(pattern: str) -> list[Path]:
  path = local_input(pattern, "--input")
  if path.is_file():  # its name may hold brackets
    return [path]
  names = str(path)
  if path.is_dir():
    names = f"{glob.escape(names)}/*.h*5"
  paths = sorted(map(Path, glob.glob(names)))
  if not paths:
    raise UserError(f"got --input={pattern}, which no HDF5 file matches")
  return paths


def _format(
  file: h5py.File,
  rate_hz: float | None,
  places: dict[str, str | Sequence[str]],
) -> Hdf5Format:
  """Finds the format of a file, with what flags say of it."""
  given = {name: value for name, value in places.items() if value}
  if rate_hz:
    given["rate_hz"] = rate_hz
  if "action" in given:
    known = Hdf5Format("", "", (), r"(?!)", {}, 0.0, instruction="instruction")
  else:
    known = FORMATS[hdf5_formats.recognize(file)]
  if "state" in given:
    given["state"] = tuple(given["state"])
  for name in ("episodes", "pictures"):
    _check_pattern(name, given.get(name, ""))
  known = dataclasses.replace(known, **given)
  if not known.rate_hz:
    raise UserError("got no --rate_hz, expected the steps per second; pass it")
  return known


def _check_pattern(name: str, pattern: str):
  """Raises UserError unless a flag holds a regular expression."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise UserError(
      f"got --{name}={pattern!r} ({error}), expected a regular expression such "
      r"as data/demo_\d+, in which .* stands for anything"
    ) from error


def _groups(file: h5py.File, known: Hdf5Format) -> list[str]:
  groups = hdf5_formats.demos(file, known.episodes)
  if not groups:
    raise UserError(
      f"{file.filename}: got no group that matches {known.episodes!r}; correct "
      "--episodes"
    )
  return groups


def _groups_of(path: Path, known: Hdf5Format) -> list[str]:
  with hdf5_formats.opened(path) as file:
    return _groups(file, known)


def _layout(
  group: h5py.Group,
  known: Hdf5Format,
  state: Sequence[str],
  found: Sequence[str],
  cameras: Sequence[str],
) -> Layout:
  for name in (known.action, *state):
    if name not in found:
      raise unknown_name("a data set of an episode", name, found)

  def columns(name: str):
    width = int(np.prod(group[name].shape[1:]))
    return hdf5_formats.columns_of(known, name, width)

  pictures = [name for name in found if re.fullmatch(known.pictures, name)]
  return Layout(
    choose_cameras(pictures, cameras),
    columns(known.action),
    tuple(column for name in state for column in columns(name)),
    known.rate_hz,
  )


@program.main
def main():
  args = flags.FLAGS
  recordings = open_recordings(
    args.input,
    args.cameras,
    args.instruction,
    args.rate_hz,
    episodes=args.episodes,
    action=args.action,
    state=args.state,
    pictures=args.pictures,
  )
  import_program.run(recordings, args)


if __name__ == "__main__":
  import_flags.define_flags()
  flags.DEFINE_float("rate_hz", None, "Steps per second", 1e-3)
  flags.DEFINE_string("episodes", "", "Expression of the episodes' groups")
  flags.DEFINE_string("action", "", "Data set of the actions")
  flags.DEFINE_list("state", [], "Data sets of the state")
  flags.DEFINE_string("pictures", "", "Expression of the pictures' data sets")
  app.run(main)

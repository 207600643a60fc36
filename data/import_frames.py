"""Imports folders of pictures and arrays, for training.

  python -m data.import_frames --input=DIR --rate_hz=10 --output_dir=OUT \\
    --name=my_arm --gripper=gripper=1:0 --unit=rad

An episode is a folder below DIR that holds

  action.csv or .npy     T rows of numbers; a CSV's first line names them
  state.csv or .npy      likewise, if the robot's state is recorded
  CAMERA/ or CAMERA.npy  T pictures, in the order of their numbers: JPEG or PNG
                         files, or uint8[T, H, W, 3]
  instruction.txt        one line, or one for each of the T steps
  timestamp.npy          seconds, if steps are not evenly spaced

It writes `OUT/my_arm/1.0.0/`: the episodes as TFDS lays them out, and
robot.json, which says what they mean. A call that was stopped goes on.
data/README.md tells more.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from data import import_flags, import_program
from data.recordings import (
  Column,
  Layout,
  Picture,
  Recording,
  as_table,
  by_number,
  choose_cameras,
  local_input,
  name_columns,
)
from launch import program
from rt2_jax.errors import UserError

_NUMBERS = ("action", "state", "timestamp")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class FrameRecordings:
  """Episodes that are folders.

  Attributes:
    root: the folder that holds them.
    episodes: the folders.
    layout: see `recordings.Recordings`.
    instruction: in place of the folders' texts; "" keeps them.
  """

  root: Path
  episodes: tuple[Path, ...]
  layout: Layout
  instruction: str = ""

  @functools.cached_property
  def names(self) -> list[str]:
    return [str(path.relative_to(self.root)) for path in self.episodes]

  def missing(self) -> dict[int, str]:
    """Says which episodes lack a camera."""
    found = {}
    for number, folder in enumerate(self.episodes):
      absent = set(self.layout.cameras.values()) - set(_cameras(folder))
      if absent:
        found[number] = f"has no pictures of {', '.join(sorted(absent))}"
    return found

  def read(self, number: int) -> Recording:
    """Reads an episode; raises UserError where it is damaged."""
    folder = self.episodes[number]
    action = _read_numbers(folder, "action", self.layout.action)
    length = len(action)
    state = np.empty((length, 0))
    if self.layout.state:
      state = _read_numbers(folder, "state", self.layout.state)
    timestamp = np.arange(length) / self.layout.rate_hz
    if (folder / "timestamp.npy").is_file():
      timestamp = _load_table(folder / "timestamp.npy").ravel()
    return Recording(
      self._instructions(folder, length),
      action,
      state,
      {
        name: _read_pictures(folder, camera)
        for name, camera in self.layout.cameras.items()
      },
      timestamp,
    )

  def _instructions(self, folder: Path, length: int) -> list[str]:
    if self.instruction:
      return [self.instruction] * length
    path = folder / "instruction.txt"
    try:
      lines = path.read_text(encoding="utf-8-sig").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(
        f"got no sentence in {path} ({error}), expected UTF-8 text; write it, "
        "or pass --instruction"
      ) from error
    texts = [line.strip() for line in lines]
    if len(texts) not in (1, length) or not all(texts):
      raise UserError(
        f"got {len(texts)} lines in {path}, expected one sentence, or one for "
        f"each of the {length} steps"
      )
    return texts * (length if len(texts) == 1 else 1)


def open_recordings(
  root: str,
  rate_hz: float,
  cameras: Sequence[str] = (),
  instruction: str = "",
) -> FrameRecordings:
  """Opens a folder of episodes, sorted by name; arguments as the flags.

  Raises:
    UserError: no episode, or no camera in the first one.
  """
  folder = local_input(root, "--input")
  found = {
    path.parent
    for path in folder.glob("**/action.*")
    # Such as .Trash-1000 on a disk from which episodes were removed.
    if not any(p.startswith(".") for p in path.relative_to(folder).parts)
  }
  episodes = tuple(sorted(found, key=lambda path: by_number(str(path))))
  if not episodes:
    raise UserError(
      f"got --input={root}, in which no folder holds action.csv or action.npy; "
      "see the top of data/import_frames.py"
    )
  first = episodes[0]
  layout = Layout(
    choose_cameras(_cameras(first), cameras),
    _columns(first, "action"),
    _columns(first, "state"),
    rate_hz,
  )
  return FrameRecordings(folder, episodes, layout, instruction)


def _cameras(folder: Path) -> list[str]:
  """Names what holds pictures, sorted."""
  folders = {
    path.parent.name for path in folder.glob("*/*") if _is_picture(path)
  }
  arrays = {path.stem for path in folder.glob("*.npy")} - set(_NUMBERS)
  return sorted(folders | arrays)


def _is_picture(path: Path) -> bool:
  hidden = path.name.startswith(".")  # macOS leaves such beside pictures
  return path.suffix.lower() in _PICTURES and not hidden


def _columns(folder: Path, name: str) -> tuple[Column, ...]:
  """Names the numbers of an array; none where there is no array."""
  path = folder / f"{name}.csv"
  if path.is_file():
    names, values = _read_csv(path)
    return name_columns(names, values.shape[1])
  if not (folder / f"{name}.npy").is_file():
    return ()
  return name_columns(None, _load_table(folder / f"{name}.npy").shape[1])


def _read_numbers(
  folder: Path, name: str, columns: Sequence[Column]
) -> np.ndarray:
  """Reads float64[T, n]; raises UserError for another width or other names."""
  path = folder / f"{name}.csv"
  names = None
  if path.is_file():
    names, values = _read_csv(path)
  else:
    path = folder / f"{name}.npy"
    values = _load_table(path)
  expected = [column.name for column in columns]
  if values.shape[1] != len(columns) or names not in (None, expected):
    raise UserError(
      f"got {names or values.shape[1]} in {path}, expected the numbers of the "
      f"first episode: {', '.join(expected)}"
    )
  return values


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
  """Reads the names of a first line, and float64[T, n].

  Raises:
    UserError: no table of numbers below a line of different names.
  """
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      names, *rows = (row for row in csv.reader(file) if row)
    names = [name.strip() for name in names]
    values = np.asarray(rows, np.float64).reshape(len(rows), len(names))
  except (OSError, ValueError) as error:
    raise UserError(
      f"got a table {path} that does not read ({error}), expected a line of "
      "names, and lines of as many numbers"
    ) from error
  if len(set(names)) < len(names) or "" in names or _are_values(names):
    raise UserError(
      f"got a table {path} that begins with {', '.join(names)!r:.80}, expected "
      "a line that names each column differently, without an index; add it"
    )
  return names, values


def _are_values(names: Sequence[str]) -> bool:
  """Tells numbers of a step from names, which may be 0, 1, 2 and so on."""
  if names == [str(i) for i in range(len(names))]:
    return False
  try:
    return bool([float(name) for name in names])
  except ValueError:
    return False


def _load_table(path: Path) -> np.ndarray:
  """Reads an array of numbers as float64[T, n]."""
  return as_table(_load(path), f"values in {path}")


def _load(path: Path, mmap_mode: str | None = None) -> np.ndarray:
  try:
    return np.load(path, mmap_mode, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise UserError(
      f"got an array {path} that does not read ({error}); save it again"
    ) from error


def _read_pictures(folder: Path, camera: str) -> Iterator[Picture]:
  """Yields the pictures of a camera."""
  path = folder / f"{camera}.npy"
  if path.is_file():
    frames = _load(path, mmap_mode="r")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
      raise UserError(
        f"got pictures {frames.dtype}{list(frames.shape)} in {path}, expected "
        "uint8[T, H, W, 3]"
      )
    yield from (np.asarray(frame) for frame in frames)
    return
  files = [path for path in folder.glob(f"{camera}/*") if _is_picture(path)]
  for file in sorted(files, key=lambda path: by_number(path.name)):
    yield file.read_bytes()


@program.main
def main():
  args = flags.FLAGS
  recordings = open_recordings(
    args.input, args.rate_hz, args.cameras, args.instruction
  )
  import_program.run(recordings, args)


if __name__ == "__main__":
  import_flags.define_flags()
  flags.DEFINE_float("rate_hz", None, "Steps per second", 1e-3, required=True)
  app.run(main)

"""Imports a LeRobot folder, v2.0, v2.1 or v3.0, for training.

  python -m data.import_lerobot --input=DIR --output_dir=OUT --name=my_arm \\
    --cameras=primary=observation.images.top,wrist=observation.images.wrist \\
    --gripper=gripper.pos=100:0 --unit=deg

writes `OUT/my_arm/1.0.0/`: the episodes as TFDS lays them out, and robot.json,
which says what they mean. Frames are matched with the numbers by their time
stamps. A video that is missing or too short is named, and its episode counts
for --max_skipped. A call that was stopped goes on. data/README.md tells more;
it needs the packages of `pip install -e '.[import]'`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import app, flags

from data import import_flags, import_program
from data.recordings import (
  Layout,
  Picture,
  Recording,
  choose_cameras,
  local_input,
  name_columns,
)
from launch import program
from rt2_jax.errors import UserError, unknown_name

with program.extra("import"):
  import pyarrow as pa

  from data import videos
  from data.lerobot_folder import LeRobotFolder, matrix

_ACTIONS = ("action", "actions")
_STATES = ("observation.state", "state")


@dataclasses.dataclass(frozen=True)
class LeRobotRecordings:
  """The episodes of a LeRobot folder.

  Attributes:
    folder: where they lie.
    layout: see `recordings.Recordings`.
    action: feature of the action.
    state: features of the state, side by side.
    instruction: in place of the tasks; "" keeps them.
  """

  folder: LeRobotFolder
  layout: Layout
  action: str
  state: tuple[str, ...]
  instruction: str = ""

  @functools.cached_property
  def names(self) -> list[str]:
    return [f"episode {e['episode_index']}" for e in self.folder.episodes]

  def missing(self) -> dict[int, str]:
    """Says which episodes lack their numbers or a video.

    Raises:
      UserError: a camera has no video at all.
    """
    found, episodes = {}, range(len(self.folder.episodes))
    cameras = list(filter(self._is_video, self.layout.cameras.values()))
    for camera in cameras:
      places = [self.folder.video(number, camera).path for number in episodes]
      if places and not any(place.is_file() for place in places):
        place = places[0].relative_to(self.folder.root)
        raise UserError(
          f"got no video of {camera} for any episode, expected {place} and so "
          "on; name the cameras that have some, --cameras=primary=NAME, or the "
          "template of the videos' places, --video_path=TEMPLATE"
        )
    for number in episodes:
      paths = [self.folder.data_path(number)]
      paths += [self.folder.video(number, camera).path for camera in cameras]
      absent = [path for path in paths if not path.is_file()]
      if absent:
        places = ", ".join(str(p.relative_to(self.folder.root)) for p in absent)
        found[number] = f"has no {places}"
    return found

  def read(self, number: int) -> Recording:
    """Reads an episode; raises UserError where it is damaged."""
    pictures = [
      camera
      for camera in self.layout.cameras.values()
      if not self._is_video(camera)
    ]
    wanted = [self.action, *self.state, "timestamp", *pictures]
    tasks = ["task_index"] * (not self.instruction)
    table = self.folder.rows(number, [*wanted, *tasks])
    timestamp = matrix(table, "timestamp")[:, 0]
    notes: list[str] = []
    images = {}
    for name, camera in self.layout.cameras.items():
      if self._is_video(camera):
        images[name] = self._frames(number, camera, timestamp, notes)
      else:
        images[name] = self._pictures(table, camera)
    state = [matrix(table, name) for name in self.state]
    empty = np.empty((table.num_rows, 0))
    return Recording(
      self._instructions(table),
      matrix(table, self.action),
      np.concatenate([empty, *state], -1),
      images,
      timestamp,
      notes,
    )

  def _is_video(self, camera: str) -> bool:
    return self.folder.features[camera]["dtype"] == "video"

  def _instructions(self, table: pa.Table) -> list[str]:
    if self.instruction:
      return [self.instruction] * table.num_rows
    numbers = table["task_index"].to_pylist()
    unknown = set(numbers) - set(self.folder.tasks)
    if unknown:
      raise UserError(
        f"got task_index {sorted(unknown)}, expected one of the "
        f"{len(self.folder.tasks)} tasks of meta/; pass --instruction=TEXT"
      )
    return [self.folder.tasks[number] for number in numbers]

  def _frames(
    self, number: int, camera: str, timestamp: np.ndarray, notes: list[str]
  ) -> Iterator[np.ndarray]:
    """Yields the frames of a video, matched by time stamps.

    Some recordings stamp the first step with 1 / rate and the video's first
    frame with 0. Where the video ends too early for the stamps as they are,
    and not for stamps from 0, it is one of those.
    """
    span = self.folder.video(number, camera)
    times, rate = timestamp, self.layout.rate_hz
    if not span.shared and timestamp[0] > 0.5 / rate:
      first, last = videos.time_span(span.path)
      if last + 0.5 / rate < timestamp[-1]:
        times = timestamp - timestamp[0] + first
        notes.append(
          f"time stamps begin at {timestamp[0]:.3f} s, the frames of {camera} "
          f"at {first:.3f} s; the first was taken for the first"
        )
    return videos.frames_at(span.path, span.start + times, rate)

  def _pictures(self, table: pa.Table, camera: str) -> Iterator[Picture]:
    """Yields pictures that lie in the table, or in files that it names."""
    for value in table[camera]:
      fields = value.as_py()
      if not isinstance(fields, Mapping):
        raise UserError(
          f"got {fields!r:.40} as a picture of {camera}, expected its bytes or "
          "path; drop this episode"
        )
      data = fields.get("bytes")
      if not data:
        path = self.folder.root / str(fields.get("path"))
        if not path.is_file():
          raise UserError(f"got no picture {path} of {camera}; copy it again")
        data = path.read_bytes()
      yield data


def open_recordings(
  root: str,
  cameras: Sequence[str] = (),
  action: str = "",
  state: Sequence[str] = (),
  instruction: str = "",
  video_path: str = "",
) -> LeRobotRecordings:
  """Opens a LeRobot folder; arguments as the flags of the same names.

  Raises:
    UserError: no such folder, feature or camera.
  """
  folder = LeRobotFolder.open(local_input(root, "--input"), video_path)
  known = list(folder.features)
  action = action or next((n for n in _ACTIONS if n in known), _ACTIONS[0])
  state = state or [n for n in _STATES if n in known][:1]
  for name in (action, *state):
    if name not in known:
      raise unknown_name("a feature of meta/info.json", name, known)
  layout = Layout(
    choose_cameras(folder.cameras(), cameras),
    _columns(folder, action),
    sum((_columns(folder, name) for name in state), ()),
    float(folder.info["fps"]),
  )
  return LeRobotRecordings(folder, layout, action, tuple(state), instruction)


def _columns(folder: LeRobotFolder, feature: str):
  width = int(np.prod(folder.features[feature]["shape"]))
  return name_columns(folder.column_names(feature), width)


@program.main
def main():
  args = flags.FLAGS
  recordings = open_recordings(
    args.input,
    args.cameras,
    args.action,
    args.state,
    args.instruction,
    args.video_path,
  )
  import_program.run(recordings, args)


if __name__ == "__main__":
  import_flags.define_flags()
  flags.DEFINE_string("action", "", "Feature of the action")
  flags.DEFINE_list("state", [], "Features of the state; default: the usual")
  flags.DEFINE_string(
    "video_path", "", "Where videos lie, if not where meta/info.json says"
  )
  app.run(main)

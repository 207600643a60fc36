"""Imports what launch/robot.py --record wrote, for training.

  python -m data.import_robot_log --input=episodes --output_dir=OUT \\
    --name=my_arm

writes `OUT/my_arm/1.0.0/`: the episodes as TFDS lays them out, and robot.json,
which says what they mean. An action is the one that was carried out, a person's
corrections included. The policy's bounds are kept, so that its tokens mean the
same when it is trained further. Only what ended with `terminate` teaches to
terminate.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
from absl import app, flags

from data import import_flags, import_program
from data.recordings import Column, Layout, Recording, local_input
from launch import program
from rt2_jax import robot_log
from rt2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RobotLogRecordings:
  """The episodes of a folder of `robot_log.write`.

  Attributes:
    files: one for each episode.
    layout: see `recordings.Recordings`.
    metadata: of the service that all of them asked.
  """

  files: tuple[pathlib.Path, ...]
  layout: Layout
  metadata: dict[str, Any]

  @property
  def names(self) -> list[str]:
    return [file.name for file in self.files]

  def missing(self) -> dict[int, str]:
    """Says that no episode lacks a file."""
    return {}

  def read(self, number: int) -> Recording:
    """Reads an episode; raises UserError where it is damaged or another's."""
    about, arrays = robot_log.read(self.files[number])
    for name in ("action_names", "action_units", "cameras", "state_names"):
      got, expected = about["metadata"][name], self.metadata[name]
      if got != expected:
        raise UserError(
          f"got {name} {got}, expected {expected} as in the first episode; "
          "import the episodes of another robot by themselves"
        )
    steps = len(arrays["action"])
    # A state that the policy does not read has neither names nor units.
    state = np.empty((steps, 0), np.float32)
    if self.layout.state:
      state = arrays["state"]
    return Recording(
      about["instructions"],
      arrays["action"],
      state,
      {c: arrays[f"image_{c}"] for c in self.layout.cameras},
      np.arange(steps) / about["rate_hz"],
    )


def open_recordings(folder: str) -> RobotLogRecordings:
  """Opens a folder of episodes.

  Raises:
    UserError: no episode there.
  """
  files = robot_log.files(local_input(folder, "--input"))
  if not files:
    raise UserError(
      f"got --input={folder} without an episode, expected what "
      "launch/robot.py --record wrote"
    )
  about, _ = robot_log.read(files[0])
  said = about["metadata"]
  layout = Layout(
    {camera: camera for camera in said["cameras"]},
    _columns(said["action_names"], said["action_units"]),
    _columns(said["state_names"], said["state_units"]),
    about["rate_hz"],
  )
  return RobotLogRecordings(tuple(files), layout, said)


def _columns(names: list[str], units: list[str]) -> tuple[Column, ...]:
  return tuple(map(Column, names, units))


@program.main
def main():
  args = flags.FLAGS
  if not args.robot:
    args.robot = str(pathlib.Path(args.input) / robot_log.DESCRIPTION)
  import_program.run(open_recordings(args.input), args)


if __name__ == "__main__":
  import_flags.define_flags()
  app.run(main)

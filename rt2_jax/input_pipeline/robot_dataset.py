"""RobotDataset: the meaning of a dataset's records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import rlds
from rt2_jax.input_pipeline.episodes import Canonical, Episode
from rt2_jax.observation import PRIMARY


@dataclasses.dataclass(frozen=True)
class RobotDataset:
  """The meaning of a dataset's records.

  Attributes:
    space: what the numbers of `standardize`'s actions are.
    cameras: the image feature of each camera, by the camera's name.
    standardize: an episode's small features in canonical form.
    state: the robot's state; None where the records hold none.
    rate_hz: steps per second.
    recorded_as: pattern of the names that dataset_info.json may have. Fields of
      the same name and width mean other things elsewhere. "" accepts all.
    version: raise it where the functions read what is no part of their code,
      such as a table in a file, and that has changed. Indexes are made again.
  """

  space: ActionSpace
  cameras: Mapping[str, str]
  standardize: Callable[[Episode], Canonical]
  state: rlds.RobotState | None = None
  rate_hz: float | None = None
  recorded_as: str = ""
  version: int = 1

  def __post_init__(self):
    if PRIMARY not in self.cameras:
      raise UserError(
        f"got cameras {list(self.cameras)} of the robot dataset with action "
        f"space {self.space.name!r}, expected {PRIMARY!r} among them; call the "
        "one that sees the scene so"
      )

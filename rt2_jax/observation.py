"""What a robot sees, knows and is told; and which part of it a model reads.

Numpy only.

Shapes: T frames of a camera (its history, oldest first), H x W pixels, S
numbers of a robot's state.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError

PRIMARY = "primary"  # the camera of a robot with one, and of web pictures


class Observation(NamedTuple):
  """One robot at one moment.

  Attributes:
    images: uint8[T, H, W, 3] by camera; cameras may differ in size.
    instruction: what to do.
    state: float32[S] in physical units; None where the model reads none.
  """

  images: Mapping[str, np.ndarray]
  instruction: str
  state: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ObservationSpec:
  """What a model reads of an observation, and in which order.

  Images enter the model camera by camera, and oldest first within a camera.

  Attributes:
    cameras: names in the order in which images enter the model. The first one
      also takes web pictures.
    history: T, frames of each camera.
    state: what the S numbers of a state mean; None reads no state.
    uncropped: cameras that augmentation does not crop. A wrist camera is fixed
      to the gripper, so a crop would change where the gripper appears.
  """

  cameras: tuple[str, ...] = (PRIMARY,)
  history: int = 1
  state: ActionSpace | None = None
  uncropped: tuple[str, ...] = ()

  def __post_init__(self):
    repeated = len(set(self.cameras)) < len(self.cameras)
    if not self.cameras or repeated or self.history < 1:
      raise UserError(
        f"got cameras {list(self.cameras)} and history {self.history}, "
        "expected different names, at least one, and a history of at least 1; "
        "change config.observation"
      )
    if unknown := set(self.uncropped) - set(self.cameras):
      raise UserError(
        f"got uncropped cameras {sorted(unknown)}, expected some of "
        f"{list(self.cameras)}; change config.observation.uncropped"
      )

  @property
  def num_images(self) -> int:
    """F, images of one observation."""
    return len(self.cameras) * self.history

  def to_dict(self) -> dict[str, Any]:
    """Converts to JSON form, as checkpoints store it."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> ObservationSpec:
    """Inverts `to_dict`."""
    state = data["state"] and ActionSpace.from_dict(data["state"])
    cameras, uncropped = tuple(data["cameras"]), tuple(data["uncropped"])
    return cls(cameras, data["history"], state, uncropped)


class History:
  """Keeps a robot's last frames, to give a model its history of images."""

  def __init__(self, length: int):
    """`length` T: frames of each camera, the newest included."""
    self._length = length
    self._past: dict[str, collections.deque[np.ndarray]] = {}

  def add(self, observation: Observation) -> Observation:
    """Adds the newest frames and returns an observation of the last T.

    Before there are T frames the first one is repeated, as in training.

    Args:
      observation: with one frame of each camera, uint8[1, H, W, 3].
    """
    images = {}
    for camera, frames in observation.images.items():
      newest = frames[-1]
      if camera not in self._past:
        first = [newest] * self._length
        self._past[camera] = collections.deque(first, self._length)
      self._past[camera].append(newest)
      images[camera] = np.stack(self._past[camera])
    return observation._replace(images=images)

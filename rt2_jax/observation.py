"""Observations of a robot, and the parts of them that a model reads.

Numpy only: simulation workers import this file under an interpreter of their
own. What needs Pillow is imported where it is used.

Shapes: B robots, T frames of a camera (its history, oldest first), F images of
all cameras, H x W pixels, S numbers of a robot's state.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError
from rt2_jax.ranges import at_least, between

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
  """The parts of an observation that a model reads, in order.

  Images enter the model camera by camera, and oldest first within a camera.

  Attributes:
    cameras: names in the order in which images enter the model. The first one
      also takes web pictures.
    missing: cameras that this robot does not have. The model ignores their
      images, so that robots with and without one can share a mixture.
    history: T, frames of each camera.
    state: what the S numbers of a state mean; None reads no state.
    uncropped: cameras that augmentation does not crop. A wrist camera is fixed
      to the gripper, so a crop would change where the gripper appears.
  """

  cameras: tuple[str, ...] = (PRIMARY,)
  missing: tuple[str, ...] = ()
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
    if set(self.missing) >= set(self.cameras):
      raise UserError(
        f"got a robot without any of the cameras {list(self.cameras)}, "
        "expected at least one; change config.observation.cameras"
      )

  @property
  def present(self) -> tuple[str, ...]:
    """The cameras that this robot has, in the model's order."""
    return tuple(c for c in self.cameras if c not in self.missing)

  @property
  def num_images(self) -> int:
    """F, images of one observation, those of missing cameras included."""
    return len(self.cameras) * self.history

  @property
  def several_cameras(self) -> bool:
    """Whether some robot or web picture of the mixture may lack a camera."""
    return len(self.cameras) > 1

  def to_dict(self) -> dict[str, Any]:
    """Converts to JSON form, as checkpoints store it."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> ObservationSpec:
    """Inverts `to_dict`."""
    state = data["state"] and ActionSpace.from_dict(data["state"])
    names = ("cameras", "missing", "uncropped")
    tuples = {name: tuple(data[name]) for name in names}
    return cls(history=data["history"], state=state, **tuples)


ONE_CAMERA = ObservationSpec()  # RT-2's own


@dataclasses.dataclass(frozen=True)
class ObservationConfig:
  """Fields of a config's `observation`, see `ObservationSpec`.

  Attributes:
    cameras: names in the order in which images enter the model. A source
      without one of them takes part; its image is masked.
    history: frames of each camera, the newest included.
    uncropped: cameras that augmentation does not crop, such as "wrist".
    state: whether the prompt holds the robot's state; `prompt.template` then
      has the field `{state}`.
    state_dropout: fraction of the training examples whose prompt holds none,
      so that a policy cannot act by its state alone.
  """

  cameras: Sequence[str] = (PRIMARY,)
  history: Annotated[int, at_least(1)] = 1
  uncropped: Sequence[str] = ()
  state: bool = False
  state_dropout: Annotated[float, between(0, 1)] = 0.0

  @property
  def spec(self) -> ObservationSpec:
    """The model's cameras and history; each robot says which it has."""
    return ObservationSpec(
      cameras=tuple(self.cameras),
      history=self.history,
      uncropped=tuple(self.uncropped),
    )


class Batched(NamedTuple):
  """Observations of B robots as arrays.

  Attributes:
    image: uint8[B, F, H, W, 3] on a canvas, in the order of a spec.
    image_size: int32[B, F, 2], height and width of each image; what lies below
      and right of it is padding. 0 x 0 where a robot lacks the camera.
    instruction: B texts.
    state: float32[B, S]; S is 0 where the model reads none.
  """

  image: np.ndarray
  image_size: np.ndarray
  instruction: Sequence[str]
  state: np.ndarray


def from_images(
  image: np.ndarray,
  instruction: Sequence[str],
  image_size: np.ndarray | None = None,
) -> Batched:
  """Takes images that lie on a canvas already, of robots without a state.

  Args:
    image: uint8[B, F, H, W, 3].
    instruction: B texts.
    image_size: int32[B, F, 2]; None: each image fills the canvas.

  Raises:
    UserError: images or sizes of another shape or type.
  """
  from rt2_jax.images import as_frames, as_sizes

  image = np.asarray(image)
  image = as_frames(image, len(instruction), image.shape[1])
  state = np.zeros((len(image), 0), np.float32)
  return Batched(image, as_sizes(image_size, image), instruction, state)


def to_batch(
  observations: Sequence[Observation], spec: ObservationSpec
) -> Batched:
  """Lays the images of B >= 1 observations on one canvas.

  Raises:
    UserError: another set of cameras, images of another shape, type or number,
      or another state than the spec has.
  """
  images = [_images(each, spec) for each in observations]
  sizes = np.asarray(
    [[image.shape[:2] for image in row] for row in images], np.int32
  )
  height, width = sizes.max((0, 1))
  canvas = np.zeros((*sizes.shape[:2], height, width, 3), np.uint8)
  for placed, row in zip(canvas, images, strict=True):
    for place, image in zip(placed, row, strict=True):
      place[: image.shape[0], : image.shape[1]] = image
  states = np.stack([_state(each, spec) for each in observations])
  texts = [each.instruction for each in observations]
  return Batched(canvas, sizes, texts, states)


def _images(observation: Observation, spec: ObservationSpec) -> list:
  """Collects F images uint8[H, W, 3], 0 x 0 pixels for a missing camera.

  Raises:
    UserError: see `to_batch`.
  """
  from rt2_jax.images import check_sides

  if set(observation.images) != set(spec.present):
    raise UserError(
      f"got images of the cameras {sorted(observation.images)}, expected "
      f"{sorted(spec.present)}; pass one array uint8[{spec.history}, H, W, 3] "
      "for each"
    )
  images = []
  for camera in spec.cameras:
    if camera in spec.missing:
      images += [np.zeros((0, 0, 3), np.uint8)] * spec.history
      continue
    frames = np.asarray(observation.images[camera])
    shape = frames.shape
    wrong = len(shape) != 4 or shape[0] != spec.history or shape[-1] != 3
    if wrong or frames.dtype != np.uint8:
      raise UserError(
        f"got {frames.dtype}{list(shape)} from camera {camera!r}, expected "
        f"uint8[{spec.history}, H, W, 3]: its last {spec.history} frames"
      )
    check_sides(*shape[1:3])
    images += list(frames)
  return images


def _state(observation: Observation, spec: ObservationSpec) -> np.ndarray:
  """Returns the state, float32[S].

  Raises:
    UserError: a state where none is read, none where one is, or another size.
  """
  names = spec.state.names if spec.state else ()
  given = () if observation.state is None else observation.state
  state = np.asarray(given, np.float32)
  if state.shape != (len(names),):
    raise UserError(
      f"got a state of shape {list(state.shape)}, expected {len(names)} "
      f"numbers{': ' if names else ''}{', '.join(names)}"
    )
  return state


class History:
  """Keeps a robot's last frames, to give a model its history of images."""

  def __init__(self, length: int):
    """Takes `length` T: frames of each camera, the newest included."""
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

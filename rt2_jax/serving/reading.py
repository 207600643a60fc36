"""What a client sent becomes an observation, or is refused by name.

Nothing is adapted silently: another camera, another size, another number of
dimensions or other units are refused. An encoded picture's size is read from
its header, and compared, before its pixels are decoded.

Shapes: T frames of a camera, H x W pixels, S numbers of a robot's state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rt2_jax import images
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.observation import Observation, ObservationSpec
from rt2_jax.prompt import Prompt

Size = tuple[int, int]  # height, width

_FORMATS = ("JPEG", "PNG", "WEBP")
_MAX_INSTRUCTION = 2000  # characters; the prompt's own limit is in tokens
_PIXEL_BYTES = 17  # of "[255, 255, 255], " in JSON
OTHER_BYTES = 1 << 16  # of a request beside its images


def is_reset(value: Any) -> bool:
  """Reads whether an episode begins.

  Raises:
    UserError: neither yes nor no.
  """
  if not isinstance(value, bool | np.bool_):
    raise UserError(
      f"got a reset of type {type(value).__name__}, expected true or false"
    )
  return bool(value)


class Reader:
  """Checks requests against what the policy was compiled for."""

  def __init__(
    self,
    spec: ObservationSpec,
    camera_sizes: Mapping[str, Size],
    prompt: Prompt,
  ):
    """Compares the stated cameras with the policy's.

    Args:
      spec: what the policy reads.
      camera_sizes: height and width of each present camera's images.
      prompt: counts an instruction's tokens.

    Raises:
      UserError: a camera without a size, or a size without a camera.
    """
    if set(camera_sizes) != set(spec.present):
      raise UserError(
        f"got sizes of the cameras {sorted(camera_sizes)}, expected "
        f"{sorted(spec.present)}, which the policy reads; state each one's"
      )
    for height, width in camera_sizes.values():
      images.check_sides(height, width)
    self.spec = spec
    self.camera_sizes = dict(camera_sizes)
    self._prompt = prompt

  @property
  def max_bytes(self) -> int:
    """The most that an honest request takes, whatever its protocol."""
    pixels = sum(h * w for h, w in self.camera_sizes.values())
    return _PIXEL_BYTES * pixels * self.spec.history + OTHER_BYTES

  def blank(self) -> Observation:
    """Returns an observation of black images, as the policy gets one."""
    frames = {
      camera: np.zeros((self.spec.history, *size, 3), np.uint8)
      for camera, size in self.camera_sizes.items()
    }
    state = self.spec.state and np.zeros(len(self.spec.state), np.float32)
    return Observation(frames, "", state)

  def read(
    self, pictures: Mapping[str, Any], instruction: Any, state: Any
  ) -> Observation:
    """Reads a request.

    Args:
      pictures: by camera: an encoded image, uint8[H, W, 3], or
        uint8[T, H, W, 3] for a robot that keeps its own history; or a function
        that returns one of these.
      instruction: a text.
      state: numbers of the robot's state; None where the policy reads none.

    Raises:
      UserError: whatever does not fit; names it.
    """
    for camera in pictures:
      if camera not in self.camera_sizes:
        raise unknown_name("a camera", str(camera), self.camera_sizes)
    missing = [c for c in self.camera_sizes if c not in pictures]
    if missing:
      raise UserError(
        f"got no image of the camera {missing[0]!r}, expected one of each of "
        f"{list(self.camera_sizes)}"
      )
    frames = {c: self._frames(c, value) for c, value in pictures.items()}
    if len({len(each) for each in frames.values()}) > 1:
      raise UserError(
        "got different numbers of frames from the cameras, expected one of "
        f"each, or {self.spec.history} of each"
      )
    numbers = self._state(state)
    return Observation(frames, self._instruction(instruction, numbers), numbers)

  def _frames(self, camera: str, value: Any) -> np.ndarray:
    """uint8[1, H, W, 3] or uint8[T, H, W, 3]."""
    if callable(value):
      value = value()
    if isinstance(value, bytes):
      value = self._decode(camera, value)
    if not isinstance(value, np.ndarray):
      raise UserError(
        f"got {type(value).__name__} from camera {camera!r}, expected an array "
        f"of pixels, or the bytes of a {', '.join(_FORMATS)} file"
      )
    frames = value[None] if value.ndim == 3 else value
    shape = (*self.camera_sizes[camera], 3)
    is_number = len(frames) in (1, self.spec.history) if frames.ndim else False
    if value.dtype != np.uint8 or frames.shape[1:] != shape or not is_number:
      raise self._wrong_image(camera, f"{value.dtype}{list(value.shape)}")
    return frames

  def _decode(self, camera: str, data: bytes) -> np.ndarray:
    try:
      with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
        size = picture.height, picture.width
    except images.UNREADABLE as error:
      raise UserError(
        f"got {len(data)} bytes from camera {camera!r} that are no image, "
        f"expected a {', '.join(_FORMATS)} file"
      ) from error
    if size != self.camera_sizes[camera]:
      raise self._wrong_image(camera, f"{size[0]} x {size[1]} pixels")
    return images.decode(data)

  def _wrong_image(self, camera: str, got: str) -> UserError:
    height, width = self.camera_sizes[camera]
    several = f" or uint8[{self.spec.history}, {height}, {width}, 3]"
    return UserError(
      f"got {got} from camera {camera!r}, expected uint8[{height}, {width}, 3]"
      f"{several if self.spec.history > 1 else ''}: send the camera's own "
      "pixels, or start the service with other camera sizes"
    )

  def _state(self, state: Any) -> np.ndarray | None:
    """float32[S], or None."""
    names = self.spec.state.names if self.spec.state else ()
    if state is None:
      state = ()
    try:
      numbers = np.asarray(state)
    except ValueError as error:  # a ragged list
      raise UserError(f"got a state that is no list of numbers: {error}") from (
        error
      )
    is_real = numbers.dtype.kind in "iuf" or not numbers.size
    if numbers.shape != (len(names),) or not is_real:
      raise UserError(
        f"got a state {numbers.dtype}{list(numbers.shape)}, expected "
        f"{len(names)} numbers{': ' if names else ''}{', '.join(names)}"
      )
    with np.errstate(over="ignore"):
      numbers = numbers.astype(np.float32)
    if not np.isfinite(numbers).all():
      raise UserError("got a state with NaN or infinity, expected numbers")
    return numbers if names else None

  def _instruction(self, text: Any, state: Sequence[float] | None) -> str:
    if not isinstance(text, str) or not text or len(text) > _MAX_INSTRUCTION:
      kind = type(text).__name__
      length = f" of length {len(text)}" if isinstance(text, str) else ""
      raise UserError(
        f"got an instruction of type {kind}{length}, expected a text of 1 to "
        f"{_MAX_INSTRUCTION} characters"
      )
    ids = [0] * (0 if state is None else len(state))  # as many tokens
    self._prompt.robot_prefix(text, ids)
    return text

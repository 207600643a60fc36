"""Renders the tabletop: pictures as textures, lighting, the camera."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence

import mujoco
import numpy as np

from rt2_jax.envs.tabletop import scene, surfaces
from rt2_jax.envs.tabletop.scene import Thing, World
from rt2_jax.errors import UserError

_TOP = 4  # which of a cube texture's six faces lies on top
BLOCK_COLOUR = (250, 247, 238)
MAT_COLOUR = (176, 206, 232)
_SIDE_COLOUR = (205, 196, 178)
_drawing_process: int | None = None  # id of the process that opened a camera


class Camera:
  """Draws a world into images of S x S pixels."""

  def __init__(self, world: World, image_size: int):
    """Opens a drawing context.

    Raises:
      UserError: no library that draws without a screen, or TensorFlow in
        the same process.
    """
    if "tensorflow" in sys.modules:
      # Both bring an LLVM of their own, and the second one's calls reach the
      # first: the process would die of a segmentation fault.
      raise UserError(
        "got a process that has loaded TensorFlow, expected one without: it "
        "and the drawing library crash each other; run the environment in a "
        "process of its own (multiprocessing, start method 'spawn')"
      )
    _check_fork()
    self._world = world
    try:
      self._screen = mujoco.GLContext(image_size, image_size)
      self._screen.make_current()
      self._context = mujoco.MjrContext(
        world.model, mujoco.mjtFontScale.mjFONTSCALE_100
      )
    except Exception as error:
      raise UserError(
        f"got no way to draw without a screen ({error}), expected the library "
        "EGL or OSMesa; run `apt-get install libegl1 libegl-mesa0 "
        "libgl1-mesa-dri` (or libosmesa6), and leave MUJOCO_GL unset"
      ) from error
    self._free = weakref.finalize(self, _free, self._screen, self._context)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
    self._drawn = mujoco.MjvScene(world.model, maxgeom=200)
    self._drawn.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    self._drawn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    self._view = mujoco.MjvCamera()
    self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
    self._view.fixedcamid = world.model.camera("camera").id
    self._option = mujoco.MjvOption()
    self._window = mujoco.MjrRect(0, 0, image_size, image_size)
    self._pixels = np.empty((image_size, image_size, 3), np.uint8)
    first = world.model.camera("camera")
    self._first_pose = first.pos.copy(), first.quat.copy()

  def dress(
    self,
    things: Sequence[Thing],
    pictures: Sequence[np.ndarray],
    surface: np.ndarray,
    lighting: surfaces.Lighting,
    viewpoint: surfaces.Viewpoint,
  ) -> None:
    """Shows other pictures, another table and other light from now on.

    Args:
      things: as the world has them.
      pictures: of each, uint8[64, 64, 4].
      surface: of the table, uint8[128, 128, 3].
      lighting: of the scene.
      viewpoint: of the camera.
    """
    self._screen.make_current()
    for slot, thing, picture in zip(
      self._world.slots, things, pictures, strict=True
    ):
      self._upload(slot, faces(picture, thing.is_block))
    self._upload("table", surface)
    model = self._world.model
    colour = np.array(lighting.colour)
    model.vis.headlight.ambient[:] = 0.55 * colour
    model.vis.headlight.diffuse[:] = 0.25 * colour
    model.light("lamp").diffuse = 0.25 * colour
    model.light("lamp").dir = lighting.lamp_direction
    position, turn = self._first_pose
    camera = model.camera("camera")
    camera.pos = position + viewpoint.shift
    offset, axis = np.zeros(4), np.array(viewpoint.turn)
    angle = float(np.linalg.norm(axis))
    mujoco.mju_axisAngle2Quat(offset, axis / max(angle, 1e-9), angle)
    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, turn, offset)
    camera.quat = turned
    mujoco.mj_forward(model, self._world.data)

  def _upload(self, texture: str, image: np.ndarray) -> None:
    model = self._world.model
    number = model.texture(texture).id
    start = model.tex_adr[number]
    model.tex_data[start : start + image.size] = image.ravel()
    mujoco.mjr_uploadTexture(model, self._context, number)

  def render(self) -> np.ndarray:
    """Draws the scene, uint8[S, S, 3]."""
    self._screen.make_current()
    mujoco.mjv_updateScene(
      self._world.model,
      self._world.data,
      self._option,
      None,
      self._view,
      mujoco.mjtCatBit.mjCAT_ALL,
      self._drawn,
    )
    mujoco.mjr_render(self._window, self._drawn, self._context)
    mujoco.mjr_readPixels(self._pixels, None, self._window, self._context)
    return self._pixels[::-1].copy()

  def project(self, points: np.ndarray) -> np.ndarray:
    """Projects float[N, 3] (m) to y, x: float64[N, 2], fractions of the image.

    0, 0 is the upper left corner; outside 0..1 the camera does not see.
    """
    data, model = self._world.data, self._world.model
    number = model.camera("camera").id
    axes = data.cam_xmat[number].reshape(3, 3)
    local = (points - data.cam_xpos[number]) @ axes
    half = np.tan(np.radians(model.cam_fovy[number]) / 2)
    on_screen = local[:, :2] / -local[:, 2:] / half
    return np.stack([0.5 - on_screen[:, 1] / 2, 0.5 + on_screen[:, 0] / 2], 1)

  def box(self, thing: int) -> tuple[float, float, float, float]:
    """Bounds the top of a thing: y_min x_min y_max x_max, fractions."""
    side, height = (
      (scene.BLOCK, scene.BLOCK_HEIGHT)
      if self._world.things[thing].is_block
      else (scene.MAT, 0.0)
    )
    body = self._world.data.body(self._world.slots[thing])
    corners = np.array(
      [[x, y, height] for x in (-side, side) for y in (-side, side)]
    )
    seen = self.project(corners @ body.xmat.reshape(3, 3).T + body.xpos)
    seen = np.clip(seen, 0.0, 1.0)
    return (*seen.min(0).tolist(), *seen.max(0).tolist())

  def close(self) -> None:
    """Gives the drawing context back."""
    self._free()


def _check_fork() -> None:
  """Notes that this process draws.

  Raises:
    UserError: it was forked from one that has drawn, whose drawing threads it
      lacks: it would deadlock.
  """
  global _drawing_process
  if _drawing_process not in (None, os.getpid()):
    raise UserError(
      "got a process that was forked after its parent had drawn, expected a "
      "fresh one; start it with 'spawn', such as "
      "AsyncVectorEnv(..., context='spawn'), or draw in the children alone"
    )
  _drawing_process = os.getpid()


def _free(screen, context) -> None:
  # Freeing acts on whatever context is current, which may be another camera's.
  screen.make_current()
  context.free()
  screen.free()


def faces(picture: np.ndarray, is_block: bool) -> np.ndarray:
  """Paints uint8[6 * 72, 72, 3]: a picture on top, plain sides.

  Args:
    picture: uint8[64, 64, 4].
    is_block: blocks are light with a dark edge, mats blue.
  """
  texels = scene.TEXELS
  face = np.empty((texels, texels, 3), np.uint8)
  face[:] = _SIDE_COLOUR if is_block else (110, 150, 190)
  face[2:-2, 2:-2] = BLOCK_COLOUR if is_block else MAT_COLOUR
  margin = (texels - len(picture)) // 2
  inner = face[margin:-margin, margin:-margin]
  opacity = picture[..., 3:] / 255.0
  inner[:] = picture[..., :3] * opacity + inner * (1.0 - opacity)
  sides = np.empty((6, texels, texels, 3), np.uint8)
  sides[:] = _SIDE_COLOUR if is_block else (110, 150, 190)
  sides[_TOP] = face
  return sides.reshape(-1, texels, 3)

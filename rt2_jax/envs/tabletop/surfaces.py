"""Textures of the table, lighting and viewpoints of the scene.

Demonstrations use the seen ones. The others test generalization: to an unseen
table ("background"), or to unseen lighting and an unseen viewpoint of the
camera, which together are what the paper calls an "environment". Easy ones
differ a little.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from rt2_jax.errors import unknown_name

SIDE = 128  # texels of a table


def _grain(seed: int, across: int, along: int) -> np.ndarray:
  """Makes fixed smooth noise, float[128, 128, 1] of about -1 .. 1."""
  rng = np.random.default_rng(seed)
  total = np.zeros((SIDE, SIDE))
  for octave in (1, 2, 4):
    rows, columns = min(along * octave, SIDE), min(across * octave, SIDE)
    noise = rng.standard_normal((rows + 1, columns + 1))
    y = np.linspace(0, rows, SIDE, endpoint=False)
    x = np.linspace(0, columns, SIDE, endpoint=False)
    top, left = y.astype(int), x.astype(int)
    v, u = (y - top)[:, None], (x - left)[None]
    corner = noise[top][:, left], noise[top][:, left + 1]
    below = noise[top + 1][:, left], noise[top + 1][:, left + 1]
    upper = corner[0] * (1 - u) + corner[1] * u
    lower = below[0] * (1 - u) + below[1] * u
    total += (upper * (1 - v) + lower * v) / octave
  return total[..., None] / 2


def _wood(colour, strength, seed):
  return np.array(colour) + strength * _grain(seed, 24, 2)


def _plain(colour, strength=2.0, seed=0):
  return np.array(colour) + strength * _grain(seed, 32, 32)


def _stripes(first, second, width):
  band = (np.arange(SIDE) // width % 2)[None, :, None]
  return np.where(band, np.array(first), np.array(second)) + np.zeros(
    (SIDE, 1, 1)
  )


def _checks(first, second, width):
  band = np.arange(SIDE) // width % 2
  return np.where(
    (band[:, None] ^ band[None])[..., None], np.array(first), np.array(second)
  )


def _dots(ground, dot, spacing):
  offset = np.arange(SIDE) % spacing - spacing / 2
  near = offset[:, None] ** 2 + offset[None] ** 2 < (spacing / 4) ** 2
  return np.where(near[..., None], np.array(dot), np.array(ground))


_BACKGROUNDS: Mapping[str, Callable[[], np.ndarray]] = {
  # Seen in demonstrations.
  "oak": lambda: _wood((176, 142, 104), 10, 1),
  "beech": lambda: _wood((200, 170, 132), 8, 2),
  "stone": lambda: _plain((150, 150, 148), 8, 3),
  # Unseen, easy: other plain colours.
  "walnut": lambda: _wood((104, 76, 58), 10, 4),
  "slate": lambda: _plain((86, 92, 100), 8, 5),
  "cork": lambda: _plain((190, 142, 92), 18, 6),
  "green_felt": lambda: _plain((62, 112, 78), 6, 7),
  # Unseen, hard: patterns that compete with the pictures.
  "checks": lambda: _checks((214, 214, 210), (188, 78, 70), 16),
  "stripes": lambda: _stripes((232, 226, 214), (76, 118, 168), 10),
  "dots": lambda: _dots((240, 224, 150), (204, 96, 130), 20),
  "tiles": lambda: _checks((226, 232, 228), (58, 66, 74), 8),
}
SEEN_BACKGROUNDS = ("oak", "beech", "stone")
EASY_BACKGROUNDS = ("walnut", "slate", "cork", "green_felt")
HARD_BACKGROUNDS = ("checks", "stripes", "dots", "tiles")


@functools.cache
def background(name: str) -> np.ndarray:
  """Paints a table, uint8[128, 128, 3]. Raises UserError: unknown name."""
  if name not in _BACKGROUNDS:
    raise unknown_name("background", name, _BACKGROUNDS)
  return np.clip(_BACKGROUNDS[name](), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Lighting:
  """Colour and direction of the light.

  Attributes:
    colour: strength of red, green and blue; 1 as in demonstrations.
    lamp_direction: where the lamp shines to.
  """

  colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
  lamp_direction: tuple[float, float, float] = (-0.2, 0.4, -1.0)


@dataclasses.dataclass(frozen=True)
class Viewpoint:
  """Pose of the camera, relative to that of the demonstrations.

  Attributes:
    shift: metres.
    turn: about its own axes (right, up, towards us), radians.
  """

  shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
  turn: tuple[float, float, float] = (0.0, 0.0, 0.0)


_ENVIRONMENTS: Mapping[str, tuple[Lighting, Viewpoint]] = {
  "lab": (Lighting(), Viewpoint()),
  # Easy: other light.
  "dusk": (Lighting((0.65, 0.65, 0.72)), Viewpoint()),
  "lamp_light": (Lighting((1.08, 0.95, 0.72), (0.8, 0.3, -1.0)), Viewpoint()),
  "bright": (Lighting((1.2, 1.2, 1.2), (-0.8, -0.2, -1.0)), Viewpoint()),
  # Hard: the camera was knocked, and other light.
  "knocked": (
    Lighting((0.85, 0.95, 1.1)),
    Viewpoint((0.02, 0.0, 0.03), (0.0, 0.03, 0.08)),
  ),
  "kitchen": (
    Lighting((1.05, 0.9, 0.75), (0.8, 0.3, -1.0)),
    Viewpoint((0.0, -0.05, -0.02), (0.06, 0, 0)),
  ),
  "cellar": (
    Lighting((0.5, 0.55, 0.5), (0.5, 0.5, -1.0)),
    Viewpoint((-0.03, 0.0, 0.04), (0, -0.04, -0.08)),
  ),
}
SEEN_ENVIRONMENTS = ("lab",)
EASY_ENVIRONMENTS = ("dusk", "lamp_light", "bright")
HARD_ENVIRONMENTS = ("knocked", "kitchen", "cellar")


def lighting_and_viewpoint(environment: str) -> tuple[Lighting, Viewpoint]:
  """Looks an environment up. Raises UserError for an unknown name."""
  if environment not in _ENVIRONMENTS:
    raise unknown_name("environment", environment, _ENVIRONMENTS)
  return _ENVIRONMENTS[environment]

"""Draws pictures of things: alone, on a board, or on the robot's table.

Shapes: S pixels a side of an image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from rt2_jax.envs.tabletop import scene, surfaces, tasks
from rt2_jax.envs.tabletop.camera import Camera
from rt2_jax.envs.tabletop.pictures import Pictures
from rt2_jax.envs.tabletop.scene import Thing, World

SCENES = ("card", "board", "table")
_FINER = 2  # pictures are drawn so many times larger, then shrunk


class Drawn(NamedTuple):
  """An image and what it shows.

  Attributes:
    image: uint8[S, S, 3].
    names: of the things, in order of their middles from left to right.
    boxes: of each, y_min x_min y_max x_max as parts of the image.
    kind: one of `SCENES`.
    hand: the point of the table below the robot's hand, y x as parts of the
      image; None without a table.
  """

  image: np.ndarray
  names: tuple[str, ...]
  boxes: tuple[tuple[float, float, float, float], ...]
  kind: str
  hand: tuple[float, float] | None = None


def most_things(kind: str) -> int:
  """Returns how many things find room in a scene."""
  return 1 if kind == "card" else 5


def draw(
  kind: str,
  pictures: Pictures,
  names: Sequence[str],
  style: str,
  image_size: int,
  rng: np.random.Generator,
) -> Drawn:
  """Draws a scene.

  Args:
    kind: one of `SCENES`; a card shows one thing.
    pictures: of all things.
    names: what to show, at most `most_things`.
    style: of the pictures.
    image_size: S.
    rng: gives places, sizes and colours.
  """
  shown = [pictures.picture(name, style) for name in names]
  hand = None
  if kind == "table":
    image, boxes, hand = _table(names, shown, image_size, rng)
  else:
    image, boxes = _flat(kind, shown, image_size, rng)
  order = sorted(range(len(names)), key=lambda i: boxes[i][1] + boxes[i][3])
  return Drawn(
    image,
    tuple(names[i] for i in order),
    tuple(boxes[i] for i in order),
    kind,
    hand,
  )


def _flat(kind, shown, image_size, rng):
  """Pictures on a plain ground whose colour runs from edge to edge."""
  side = image_size * _FINER
  ends = rng.uniform(90, 250, (2, 1, 1, 3))
  ramp = np.linspace(0, 1, side)[:, None, None]
  if rng.random() < 0.5:
    ramp = ramp.transpose(1, 0, 2)
  ground = ends[0] + (ends[1] - ends[0]) * ramp + np.zeros((side, side, 1))
  image = Image.fromarray(ground.astype(np.uint8))
  if kind == "card":
    size = rng.uniform(0.5, 0.95)
    places = [rng.uniform(size / 2, 1 - size / 2, 2)]
  else:
    size = rng.uniform(0.22, min(0.34, 0.6 / len(shown) ** 0.5))
    places = _apart(rng, len(shown), size)
  boxes = []
  for picture, (y, x) in zip(shown, places, strict=True):
    pixels = round(size * side)
    tile = Image.fromarray(picture).resize(
      (pixels, pixels), Image.Resampling.LANCZOS
    )
    tile = tile.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    corner = round(x * side - pixels / 2), round(y * side - pixels / 2)
    image.paste(tile, corner, tile)
    half = size / 2
    boxes.append((y - half, x - half, y + half, x + half))
  image = image.reduce(_FINER)
  return np.asarray(image), [tuple(np.clip(box, 0, 1)) for box in boxes]


def _apart(rng, count, size) -> np.ndarray:
  """Draws float64[count, 2], middles of squares that do not overlap."""
  while True:
    places = np.zeros((0, 2))
    for _ in range(30 * count):
      place = rng.uniform(size / 2, 1 - size / 2, 2)
      if not len(places) or np.abs(places - place).max(1).min() > size:
        places = np.vstack([places, place])
      if len(places) == count:
        return places


@functools.cache
def _studio(image_size: int) -> tuple[World, Camera]:
  world = World(image_size)
  return world, Camera(world, image_size)


def _table(names, shown, image_size, rng):
  """Blocks and mats on the robot's table, its hand somewhere above."""
  world, camera = _studio(image_size)
  is_block = rng.random(len(names)) < 0.7
  is_block[scene.MAX_MATS :] = True
  places = None
  while places is None:
    places = tasks.scatter(rng, len(names))
  turns = rng.uniform(-tasks.MAX_YAW, tasks.MAX_YAW, len(names)) * is_block
  things = [
    Thing(name, bool(block), *place, float(yaw))
    for name, block, place, yaw in zip(
      names, is_block, places, turns, strict=True
    )
  ]
  hand = tasks.out_of_the_way(rng, places)
  world.reset(things, hand, float(rng.uniform(-0.3, 0.3)))
  background = surfaces.SEEN_BACKGROUNDS[
    rng.integers(len(surfaces.SEEN_BACKGROUNDS))
  ]
  camera.dress(
    things,
    shown,
    surfaces.background(background),
    *surfaces.lighting_and_viewpoint("lab"),
  )
  below = camera.project(hand[None] * [1, 1, 0])[0]
  boxes = [camera.box(i) for i in range(len(things))]
  return camera.render(), boxes, tuple(np.clip(below, 0, 1))

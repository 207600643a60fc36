"""Writes trials as films, and as strips of images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rt2_jax import storage
from rt2_jax.errors import UserError

_LAST_MS = 1200  # the end can be looked at
_STRIP = 6  # images
_QUALITY = 85


def write_film(
  images: Sequence[np.ndarray], path: storage.Path, control_hz: float
) -> None:
  """Writes uint8[H, W, 3] images as a film at the robot's own speed."""
  storage.output_folder(path.parent, "--output")
  first, *others = (Image.fromarray(image) for image in images)
  step_ms = round(1000 / control_hz)
  film = io.BytesIO()
  first.save(
    film,
    "GIF",
    save_all=True,
    append_images=others,
    duration=[step_ms] * len(others) + [_LAST_MS],
    loop=0,
  )
  storage.write(path, film.getvalue())


def read_strip(path: storage.Path) -> bytes:
  """Lays a film's first, last and some images between side by side, as JPEG.

  Raises:
    UserError: no such film.
  """
  try:
    with Image.open(io.BytesIO(path.read_bytes())) as film:
      last = film.n_frames - 1
      images = []
      for number in np.linspace(0, last, min(_STRIP, last + 1)).round():
        film.seek(int(number))
        images.append(film.convert("RGB"))
  except OSError as error:
    raise UserError(
      f"got film {str(path)!r}, which cannot be read ({error}); expected what "
      "launch/rollout.py writes beside its numbers; run it again"
    ) from error
  side = images[0].width
  gap = max(2, side // 32)
  width = len(images) * (side + gap) - gap
  strip = Image.new("RGB", (width, images[0].height), "white")
  for i, image in enumerate(images):
    strip.paste(image, (i * (side + gap), 0))
  data = io.BytesIO()
  strip.save(data, "JPEG", quality=_QUALITY, subsampling=0)
  return data.getvalue()

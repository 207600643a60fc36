"""Pictures as their camera was held, by the orientation that EXIF states."""

from __future__ import annotations

from PIL import ExifTags, Image, ImageOps


def is_upright(picture: Image.Image) -> bool:
  """Tells whether a picture is stored as its camera was held."""
  return picture.getexif().get(ExifTags.Base.Orientation, 1) == 1


def turn_upright(picture: Image.Image) -> Image.Image:
  """Turns a picture as its camera was held."""
  upright = ImageOps.exif_transpose(picture)
  upright.format = picture.format  # `images.to_rgb` asks for it
  return upright

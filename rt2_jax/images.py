"""Pictures in numpy: decoded, resized and checked, the same way everywhere.

Resizing is Pillow's bilinear filter with antialiasing, columns first, to the
last bit: on the host by Pillow itself, on devices with `resize_weights`. Every
result is a whole grey level, so that no order of additions and no device can
change it. The image processors of Hugging Face differ by one level at most,
where they begin with the rows.
"""

import io
import struct
from types import ModuleType
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin

from rt2_jax.errors import UserError

MIN_SIDE, MAX_SIDE = 8, 8192  # pixels; outside them an image is a mistake

# A long comment is no reason to refuse a picture.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

# Pillow's plugins raise these for damaged files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, RuntimeError)
UNREADABLE += (TypeError, LookupError, ArithmeticError, struct.error)
UNREADABLE += (Image.DecompressionBombError,)

# A picture's transparent parts show this ground: most drawings are dark.
GROUND = (255, 255, 255)

_JPEG = b"\xff\xd8\xff"  # how every JPEG begins
_WEIGHT_BITS = 22  # of Pillow's weights
_DIGITS = (6, 8, 8)  # bits of the three parts of a weight


def decode(data: bytes) -> np.ndarray:
  """Decodes an image file, uint8[H, W, 3].

  Transparent parts lie on a white ground, and 16-bit grey is scaled to 8 bits.
  An orientation in EXIF is ignored: importers turn pictures upright.

  Raises:
    UserError: no image, one of a kind that has no such reading (32-bit
      integers or floats), or of an unlikely size.
  """
  if is_jpeg(data) and (pixels := _decode_jpeg(data)) is not None:
    return pixels
  try:
    with Image.open(io.BytesIO(data)) as picture:
      check_sides(picture.height, picture.width)
      return np.asarray(to_rgb(picture))
  except UserError:
    raise
  except UNREADABLE as error:
    raise UserError(
      f"got {len(data)} bytes that do not decode as an image, expected e.g. "
      "JPEG or PNG; repair or remove this example"
    ) from error


def is_jpeg(data: bytes) -> bool:
  """Tells a JPEG from other files by its first bytes."""
  return data.startswith(_JPEG)


def _decode_jpeg(data: bytes) -> np.ndarray | None:
  """Decodes as Pillow does, in less time; None: Pillow has to say."""
  try:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    check_sides(height, width)
    if colours in ("CMYK", "YCCK"):  # in other shades than Pillow's
      return None
    return simplejpeg.decode_jpeg(data)
  except ValueError:  # damaged, or of an unlikely size
    return None


def to_rgb(picture: Image.Image) -> Image.Image:
  """Converts a picture to 8-bit RGB, by the rules of `decode`.

  Raises:
    UserError: it has 32 bits a pixel or floats, whose range nothing states.
  """
  # Older Pillows open a 16-bit PNG in 32-bit mode.
  is_png = picture.mode == "I" and picture.format == "PNG"
  if picture.mode.startswith("I;16") or is_png:
    wide = np.asarray(picture).astype(np.int64)
    pixels = np.stack([(wide + 128) // 257] * 3, -1).astype(np.uint8)
    pixels[wide == picture.info.get("transparency", -1)] = GROUND
    return Image.fromarray(pixels)
  if picture.mode in ("I", "F"):
    raise UserError(
      f"got an image of mode {picture.mode!r} (32 bits a pixel), expected 8 or "
      "16 bits, whose full range is known; convert it to 8 bits"
    )
  if picture.has_transparency_data:
    drawing = picture.convert("RGBA")
    ground = Image.new("RGBA", drawing.size, GROUND)
    picture = Image.alpha_composite(ground, drawing)
  return picture.convert("RGB")


def check_sides(height: int, width: int):
  """Checks the size of an image in pixels.

  Raises:
    UserError: a side that is too short or too long to be meant.
  """
  if min(height, width) < MIN_SIDE or max(height, width) > MAX_SIDE:
    raise UserError(
      f"got an image of {height} x {width} pixels, expected sides of "
      f"{MIN_SIDE} to {MAX_SIDE}; repair or remove this example"
    )


def resize(pixels: np.ndarray, resolution: int) -> np.ndarray:
  """Resizes a whole image, uint8[H, W, 3] -> uint8[R, R, 3].

  The aspect ratio is not kept: RT-2 does not letterbox.
  """
  picture = Image.fromarray(np.ascontiguousarray(pixels))
  # Columns, then rows: newer Pillows begin with the rows of a tall image.
  for size in (resolution, picture.height), (resolution, resolution):
    picture = picture.resize(size, Image.Resampling.BILINEAR)
  return np.asarray(picture)


def resize_weights(
  start: Any,
  length: Any,
  valid: Any,
  pixels: int,
  resolution: int,
  xp: ModuleType = np,
) -> Any:
  """Computes the weight of each input pixel in each output pixel of one axis.

  The triangle filter of bilinear interpolation, widened when the image shrinks
  so that no pixel is skipped (antialias). A weight is a whole number of
  2**-22ths, as in Pillow, and is given in three parts of at most 8 bits. With
  pixels of 8 bits their sums are exact in any order and on any hardware: a part
  times a pixel is exact even where a device multiplies in bfloat16.

  Args:
    start: int32, the crop's first pixel.
    length: int32, pixels of the crop.
    valid: int32, pixels that belong to the image; those after it are padding.
    pixels: length of the axis, padding included.
    resolution: output pixels.
    xp: numpy, or jax.numpy when the first three are traced.

  Returns:
    float32[3, resolution, pixels], see `join_parts`.
  """
  # All lengths below are in units of 1 / (2 * resolution) pixels.
  assert 2 * pixels**2 <= resolution << 21, (pixels, resolution)  # int32
  output = 2 * resolution * start + (2 * xp.arange(resolution) + 1) * length
  inputs = (2 * xp.arange(pixels) + 1) * resolution
  half_width = 2 * xp.maximum(length, resolution)
  heights = xp.maximum(half_width - xp.abs(output[:, None] - inputs), 0)
  # Without a sign, and each remainder from its quotient: CPUs divide slowly.
  rest = (heights * (xp.arange(pixels) < valid)).astype(xp.uint32)
  total = rest.sum(1, keepdims=True, dtype=xp.uint32)
  parts = []
  for bits in _DIGITS[:-1]:  # long division, as 32 bits hold no quotient
    shifted = rest << bits
    parts.append(shifted // total)
    rest = shifted - parts[-1] * total
  parts.append(((rest << (_DIGITS[-1] + 1)) + total) // (2 * total))
  return xp.stack(parts).astype(xp.float32)


def join_parts(sums: Any, xp: ModuleType = np) -> Any:
  """Rounds sums of pixels times `resize_weights` to grey levels.

  Args:
    sums: float32[3, …], one for each part of the weights.
    xp: numpy or jax.numpy.

  Returns:
    float32[…], whole numbers from 0 to 255.
  """
  total = xp.zeros(sums.shape[1:], xp.int32)
  for bits, part in zip(_DIGITS, sums, strict=True):
    total = (total << bits) + part.astype(xp.int32)
  rounded = (total + (1 << (_WEIGHT_BITS - 1))) >> _WEIGHT_BITS
  return rounded.astype(xp.float32)


def as_frames(image: np.ndarray, batch: int, frames: int) -> np.ndarray:
  """Checks what robots saw, and gives it the axis of frames.

  Args:
    image: uint8[B, F, H, W, 3], or uint8[B, H, W, 3] when F is 1.
    batch: B.
    frames: F.

  Returns:
    uint8[B, F, H, W, 3].

  Raises:
    UserError: images of another shape or type, or without pixels.
  """
  if frames == 1 and image.ndim == 4:
    image = image[:, None]
  shape = (batch, frames, *image.shape[2:4], 3)
  if image.dtype != np.uint8 or image.ndim != 5 or image.shape != shape:
    wanted = "[H, W, 3]" if frames == 1 else f"[{frames}, H, W, 3]"
    raise UserError(
      f"got images {image.dtype}{list(image.shape)} for {batch} instructions, "
      f"expected uint8{wanted} for each of them"
    )
  check_sides(*image.shape[2:4])
  return image


def as_sizes(image_size: np.ndarray | None, image: np.ndarray) -> np.ndarray:
  """Checks how much of each canvas is image.

  Args:
    image_size: int[B, F, 2], height and width, 0 x 0 for an image that does not
      exist; None: no padding.
    image: uint8[B, F, H, W, 3].

  Returns:
    int32[B, F, 2].

  Raises:
    UserError: sizes of another number, or larger than the canvas.
  """
  shape, canvas = image.shape[:2], image.shape[2:4]
  if image_size is None:
    return np.tile(np.int32(canvas), (*shape, 1))
  sizes = np.asarray(image_size)
  fits = sizes.shape == (*shape, 2) and (sizes <= canvas).all()
  if not fits or ((sizes < 1).any(-1) & (sizes != 0).any(-1)).any():
    raise UserError(
      f"got image sizes {sizes.tolist()} for {list(shape)} images on a canvas "
      f"of {canvas[0]} x {canvas[1]} pixels, expected height and width of "
      "each, at least 1 and at most the canvas, or 0 x 0 for a missing camera"
    )
  return sizes.astype(np.int32)

"""Sizes of images from their headers, against what decodes them."""

import io

import numpy as np
import pytest
from PIL import Image

from rt2_jax.input_pipeline.image_size import largest_size


def encode(height, width, file_format, **options) -> memoryview:
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
  file = io.BytesIO()
  image = Image.fromarray(pixels.astype(np.uint8))
  image.save(file, file_format, **options)
  return memoryview(file.getvalue())


@pytest.mark.parametrize(
  ("file_format", "options"),
  [
    ("jpeg", {}),
    ("jpeg", {"progressive": True}),
    ("jpeg", {"optimize": True, "quality": 30}),
    ("jpeg", {"comment": b"x" * 60_000, "exif": b"Exif\0\0" + b"y" * 60_000}),
    ("png", {}),
  ],
)
def test_a_header_states_the_size(file_format, options):
  assert largest_size([encode(96, 131, file_format, **options)]) == (96, 131)


def test_the_largest_of_many():
  sizes = (64, 64), (64, 64), (32, 100), (64, 64), (80, 10), (64, 64)
  images = [encode(*size, "jpeg") for size in sizes]
  images.insert(2, encode(90, 12, "png"))
  assert largest_size(images) == (90, 100)
  assert largest_size([]) == (0, 0)


def test_what_has_no_likely_size_counts_for_nothing():
  jpeg, png = encode(64, 70, "jpeg"), encode(64, 70, "png")
  huge = bytearray(png)
  huge[16:20] = b"\x7f\xff\xff\xff"
  odd = [b"", b"no image", b"\xff\xd8", bytes(jpeg[:30]), bytes(png[:18]), huge]
  odd += [b"\xff\xd8" + b"\x00" * 50, b"\xff\xd8" + b"\xff" * 50]
  odd += [encode(4, 4, "png")]
  views = [memoryview(image) for image in odd]
  assert largest_size(views) == (0, 0)
  assert largest_size([*views, jpeg, *views]) == (64, 70)

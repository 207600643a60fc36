"""The image path: golden pixels, and changes keyed by (seed, step, row)."""

import jax
import numpy as np
import pytest
from PIL import Image

from rt2_jax import augment as augment_module
from rt2_jax import images as images_of_host
from rt2_jax.augment import Augmentation, augment, prepare


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (4, 2, 12, 16, 3), np.uint8)


FULL = Augmentation(crop=0.2, brightness=0.2, contrast=0.2, saturation=0.2)


def test_golden_pixels():
  """A 4x4 ramp to 2x2: the triangle filter of twice the spacing, by hand."""
  ramp = np.tile(np.arange(4, dtype=np.uint8)[:, None] * 60, (1, 4))
  image = np.repeat(ramp[None, None, :, :, None], 3, -1)
  # Output row 0 is centred between input rows 0 and 1; weights 3, 3, 1 of 7.
  first = round((3 * 0 + 3 * 60 + 1 * 120) / 7)
  out = np.asarray(prepare(image, 2))
  np.testing.assert_allclose(out[0, 0, 0], first / 127.5 - 1, atol=1e-6)
  np.testing.assert_allclose(out[0, 0, 1], (180 - first) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize(
  "height, width, resolution",
  [
    *((256, 320, 224), (480, 640, 224), (320, 240, 224), (100, 30, 64)),
    *(
      (37, 501, 16),
      (64, 64, 64),
      (1000, 8, 32),
      (8, 900, 96),
      (223, 225, 224),
    ),
  ],
)
def test_the_devices_resize_as_the_host_does(height, width, resolution):
  """Bit for bit, on any canvas."""
  rng = np.random.default_rng(height)
  pixels = rng.integers(0, 256, (2, height, width, 3), np.uint8)
  pixels[1] = pixels[1] // 128 * 255  # extremes
  canvas = np.full((2, 1, height + 40, width + 7, 3), 99, np.uint8)
  canvas[:, 0, :height, :width] = pixels
  size = np.array([[[height, width]]] * 2)
  levels = (np.asarray(prepare(canvas, resolution, size)) + 1) * 127.5
  for got, image in zip(levels[:, 0], pixels, strict=True):
    expected = images_of_host.resize(image, resolution)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_full_size_passes_unchanged(images):
  square = images[:, :, :, :12]
  out = np.asarray(prepare(square, 12))
  np.testing.assert_allclose((out + 1) * 127.5, square, atol=1e-3)


def test_no_augmentation_is_the_evaluation_path(images):
  key = jax.random.key(0)
  np.testing.assert_array_equal(
    augment(images, 8, Augmentation(), key), prepare(images, 8)
  )


def test_small_changes_stay_close_to_the_evaluation_path(images):
  slight = Augmentation(1e-4, 1e-4, 1e-4, 1e-4)
  out = augment(images, 8, slight, jax.random.key(0))
  np.testing.assert_allclose(out, prepare(images, 8), atol=2e-3)


def test_crops_reach_every_whole_pixel_and_stay_inside():
  noise = np.random.default_rng(0).uniform(-1, 1, (4000, 4))
  size = np.tile(np.int32([[20, 60]]), (4000, 1))
  y, x, height, width = np.asarray(augment_module._crops(noise, size, 0.1)).T
  assert set(zip(y, height, strict=True)) == {
    (0, 20), (0, 19), (1, 19), (0, 18), (1, 18), (2, 18)
  }  # fmt: skip
  assert set(width) == set(range(54, 61)) and (x + width <= 60).all()
  assert np.bincount(width)[54:].min() > 4000 / 7 * 0.8


def test_a_crop_is_resized_as_pillow_does_it():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
  y, x, height, width = crop = (3, 5, 21, 33)
  arguments = (np.int32([v]) for v in (crop, (30, 40)))
  crops, size = arguments
  got = augment_module._resize(
    pixels[None, None], crops[:, None], 16, size[:, None]
  )
  picture = Image.fromarray(pixels).resize(
    (16, 30), Image.Resampling.BILINEAR, (x, 0, x + width, 30)
  )
  picture = picture.resize(
    (16, 16), Image.Resampling.BILINEAR, (0, y, 16, y + height)
  )
  np.testing.assert_allclose((got[0, 0] + 1) * 127.5, picture, atol=1e-4)


def test_rows_change_apart_and_frames_together():
  image = np.random.default_rng(1).integers(0, 256, (1, 1, 12, 16, 3), np.uint8)
  same = np.tile(image, (3, 2, 1, 1, 1))
  out = np.asarray(augment(same, 8, FULL, jax.random.key(3)))
  np.testing.assert_array_equal(out[:, 0], out[:, 1])
  assert np.abs(out[0] - out[1]).max() > 0.01
  assert np.abs(out[1] - out[2]).max() > 0.01


def test_a_row_depends_on_its_key_and_number_only(images):
  key = jax.random.key(3)
  whole = augment(images, 8, FULL, key)
  part = augment(images[:2], 8, FULL, key)
  np.testing.assert_allclose(whole[:2], part, atol=1e-6)
  other = augment(images, 8, FULL, jax.random.key(4))
  assert np.abs(whole - other).max() > 0.01
  assert np.abs(whole).max() <= 1.0


def test_a_part_outside_0_and_1_is_refused():
  with pytest.raises(
    ValueError, match=r"got config.augmentation.crop = 1.5, e"
  ):
    Augmentation(crop=1.5)


def test_a_row_may_be_changed_less(images):
  config = Augmentation(0.2, 0.1, 0.1, 0.1)
  key = jax.random.key(0)
  rows = len(images)
  whole = np.asarray(augment(images, 16, config, key))
  fraction = np.float32(np.arange(rows) % 2)  # every second row, not at all
  mixed = np.asarray(augment(images, 16, config, key, fraction=fraction))
  np.testing.assert_array_equal(mixed[1::2], whole[1::2])
  np.testing.assert_allclose(
    mixed[::2], np.asarray(prepare(images, 16))[::2], atol=1e-6
  )
  assert not np.allclose(mixed[::2], whole[::2], atol=1e-2)

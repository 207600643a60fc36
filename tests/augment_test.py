"""The image path: golden pixels, and changes keyed by (seed, step, row)."""

import jax
import numpy as np
import pytest

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
  first = (3 * 0 + 3 * 60 + 1 * 120) / 7
  out = np.asarray(prepare(image, 2))
  np.testing.assert_allclose(out[0, 0, 0], first / 127.5 - 1, atol=1e-5)
  np.testing.assert_allclose(out[0, 0, 1], (180 - first) / 127.5 - 1, atol=1e-5)


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

"""Pictures of every kind as 8-bit RGB, and sizes that are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data import make_web_records
from rt2_jax import images
from rt2_jax.errors import UserError

RAMP = np.linspace(0, 65535, 16 * 16).reshape(16, 16)


def file_of(picture: Image.Image, kind: str = "png", **options) -> bytes:
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled_to_8_bits(kind):
  data = file_of(Image.fromarray(RAMP.astype(np.uint16)), kind)
  pixels = images.decode(data)
  assert pixels.shape == (16, 16, 3)
  np.testing.assert_allclose(pixels[..., 0], RAMP / 257, atol=0.51)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_known_range_are_refused(dtype):
  data = file_of(Image.fromarray(RAMP.astype(dtype)), "tiff")
  with pytest.raises(ValueError, match=r"got an image of mode '[IF]'.*convert"):
    images.decode(data)


def drawing(mode: str) -> Image.Image:
  """A black square on a transparent ground, half of it half transparent."""
  pixels = np.zeros((16, 16, 4), np.uint8)
  pixels[4:12, 4:12, 3] = 255
  if mode in ("RGBA", "LA"):
    pixels[8:12, 4:12, 3] = 128
  picture = Image.fromarray(pixels)
  if mode == "P":
    picture = picture.quantize(4, method=Image.Quantize.FASTOCTREE)
  return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_a_white_ground(mode):
  pixels = images.decode(file_of(drawing(mode)))
  assert pixels[0, 0].tolist() == [255, 255, 255]
  assert pixels[5, 5].tolist() == [0, 0, 0]
  if mode != "P":
    assert pixels[9, 5].tolist() == [127, 127, 127]


def test_a_transparent_colour_shows_the_ground():
  pixels = np.zeros((16, 16, 3), np.uint8)
  pixels[4:12] = 200
  data = file_of(Image.fromarray(pixels), transparency=(0, 0, 0))
  assert images.decode(data)[0, 0].tolist() == [255, 255, 255]
  assert images.decode(data)[5, 5].tolist() == [200, 200, 200]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_other_kinds_are_what_pillow_makes_of_them(mode):
  rng = np.random.default_rng(0)
  picture = Image.fromarray(rng.integers(0, 256, (9, 20, 3), np.uint8))
  picture = picture.convert(mode)
  data = file_of(picture, "tiff")
  np.testing.assert_array_equal(images.decode(data), picture.convert("RGB"))


def test_a_png_with_a_long_comment_is_read():
  comment = PngImagePlugin.PngInfo()
  comment.add_text("comment", "x" * 5_000_000, zip=True)
  data = file_of(Image.new("RGB", (9, 9)), pnginfo=comment)
  assert images.decode(data).shape == (9, 9, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(77, 53), (8, 9), (320, 256), (33, 1000)])
def test_a_jpeg_has_the_pixels_that_a_robots_program_decodes(
  mode, progressive, size
):
  """Which is Pillow, or a camera's driver with the same library."""
  rng = np.random.default_rng(0)
  picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
  picture = picture.resize(size).convert(mode)
  for subsampling, quality in (0, 100), (1, 80), (2, 30):
    options = {"subsampling": subsampling, "quality": quality}
    data = file_of(picture, "jpeg", progressive=progressive, **options)
    with Image.open(io.BytesIO(data)) as expected:
      pixels = np.asarray(expected.convert("RGB"))
    np.testing.assert_array_equal(images.decode(data), pixels)


def test_a_jpeg_is_decoded_or_refused_as_pillow_does_it():
  """Cut short, or with a byte changed anywhere."""
  whole = file_of(Image.effect_noise((40, 40), 50).convert("RGB"), "jpeg")
  rng = np.random.default_rng(0)
  refused = 0
  for cut in rng.integers(4, len(whole), 40):
    with pytest.raises(UserError):
      images.decode(whole[:cut])
  for place in rng.integers(3, len(whole), 200):
    data = bytearray(whole)
    data[place] ^= 1 << rng.integers(8)
    try:
      with Image.open(io.BytesIO(data)) as picture:
        images.check_sides(picture.height, picture.width)
        expected = np.asarray(images.to_rgb(picture))
    except (UserError, *images.UNREADABLE):
      refused += 1
      with pytest.raises(UserError):
        images.decode(bytes(data))
    else:
      np.testing.assert_array_equal(images.decode(bytes(data)), expected)
  assert 0 < refused < 200


def test_a_transparent_16_bit_grey_shows_the_ground():
  data = bytearray(file_of(Image.fromarray(RAMP.astype(np.uint16))))
  grey = struct.pack(">H", int(RAMP[0, 0]))
  check = struct.pack(">I", zlib.crc32(b"tRNS" + grey))
  start = data.index(b"IDAT") - 4
  data[start:start] = struct.pack(">I", 2) + b"tRNS" + grey + check
  assert images.decode(bytes(data))[0, :2, 0].tolist() == [255, 1]


@pytest.mark.parametrize("size", ["2Z5 9", "20000 20000"])
def test_whatever_pillow_raises_is_named(size):
  data = f"P6\n{size}\n255\n".encode() + bytes(999)
  with pytest.raises(UserError, match="^got .* decode"):
    images.decode(data)
  with pytest.raises(UserError, match="^got .* decode"):
    make_web_records.prepare_image(data, 512)


def test_bytes_that_are_no_image_are_refused():
  whole = file_of(Image.effect_noise((40, 40), 50), "png")
  broken = bytearray(whole)
  broken[60] ^= 1
  for data in (b"", b"damaged", whole[:-40], bytes(broken)):
    with pytest.raises(ValueError, match="^got .* not decode as"):
      images.decode(data)


@pytest.mark.parametrize("size", [(7, 100), (9000, 10), (100, 7)])
def test_sides_that_cannot_be_meant_are_refused(size):
  with pytest.raises(ValueError, match="expected sides of 8 to 8192"):
    images.decode(file_of(Image.new("L", size)))


def test_a_resized_image_is_pillows():
  rng = np.random.default_rng(0)
  wide = rng.integers(0, 256, (30, 90, 3), np.uint8)
  expected = Image.fromarray(wide).resize((48, 48), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(images.resize(wide, 48), expected)


@pytest.mark.parametrize(
  "sizes", [[[9, 5]], [[9, 5], [10, 4]], [[9, 5], [0, 4]], [9, 5]]
)
def test_sizes_that_are_not_of_the_canvas_are_refused(sizes):
  canvas = np.zeros((2, 1, 9, 5, 3), np.uint8)
  with pytest.raises(ValueError, match=r"got image sizes .*9 x 5 pixels"):
    images.as_sizes(np.array(sizes)[:, None], canvas)
  assert images.as_sizes(None, canvas).tolist() == [[[9, 5]]] * 2

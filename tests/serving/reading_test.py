"""What does not fit a policy is refused by name, before it is decoded."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rt2_jax import images
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.errors import UserError
from rt2_jax.observation import ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.serving.reading import Reader

SIZES = {"primary": (24, 32), "wrist": (16, 16)}
STATE = ActionSpace(
  "s", "base", (Dimension("x", "m"), Dimension("yaw", "rad", -3.0, 3.0))
)
TEMPLATE = "Do {instruction} from {state}"


@pytest.fixture(scope="module")
def reader(tokenizer):
  spec = ObservationSpec(("primary", "wrist"), history=2, state=STATE)
  return Reader(spec, SIZES, Prompt(tokenizer, 24, 9, TEMPLATE))


def pictures(changed=()):
  given = {
    camera: np.full((*size, 3), 7, np.uint8) for camera, size in SIZES.items()
  }
  given |= dict(changed)
  return {camera: each for camera, each in given.items() if each is not None}


def file(size=(24, 32), format="PNG"):
  data = io.BytesIO()
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(data, format)
  return data.getvalue()


def png_bomb(width: int, height: int) -> bytes:
  """A PNG of few bytes that claims a size."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc

  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  pixels = zlib.compress(bytes(1 << 20))
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    chunk(*each)
    for each in ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
  )


def test_an_observation_is_read(reader):
  seen = reader.read(pictures(), "pick apple", [0.5, 1])
  assert seen.images["primary"].shape == (1, 24, 32, 3)
  assert seen.state.dtype == np.float32 and seen.state.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_encoded_image_is_decoded_as_in_training(reader, format):
  data = file(format=format)
  seen = reader.read(pictures({"primary": data}), "go", [0, 0])
  expected = images.decode(data)
  np.testing.assert_array_equal(seen.images["primary"][0], expected)


def test_a_robot_may_keep_its_own_history(reader):
  own = {c: np.zeros((2, *size, 3), np.uint8) for c, size in SIZES.items()}
  seen = reader.read(own, "go", np.zeros(2))
  assert seen.images["wrist"].shape == (2, 16, 16, 3)


WRONG_PICTURES = [
  ({"wrist": None}, "no image of the camera 'wrist'"),
  ({"wirst": np.zeros((16, 16, 3), np.uint8)}, "did you mean 'wrist'"),
  ({3: np.zeros((16, 16, 3), np.uint8)}, "got '3' for a camera"),
  ({"primary": np.zeros((32, 24, 3), np.uint8)}, "uint8[32, 24, 3]"),
  ({"primary": np.zeros((24, 32, 3), np.float32)}, "float32[24, 32, 3]"),
  ({"primary": np.zeros((24, 32, 4), np.uint8)}, "uint8[24, 32, 4]"),
  ({"primary": np.zeros((3, 24, 32, 3), np.uint8)}, "uint8[3, 24, 32, 3]"),
  ({"primary": np.zeros((), np.uint8)}, "uint8[] from camera 'primary'"),
  ({"primary": np.zeros((2, 24, 32, 3), np.uint8)}, "different numbers"),
  ({"primary": "text"}, "str from camera 'primary'"),
  ({"primary": None, "x": 1}, "got 'x' for a camera"),
  ({"primary": file((48, 64))}, "got 48 x 64 pixels"),
  ({"primary": file(format="GIF")}, "are no image"),
  ({"primary": file()[:40]}, "expected"),
  ({"primary": b""}, "are no image"),
  ({"primary": b"\xff\xd8\xff\xe0"}, "are no image"),
]


@pytest.mark.parametrize(
  ("changed", "part"), WRONG_PICTURES, ids=[p for _, p in WRONG_PICTURES]
)
def test_wrong_images_are_refused(reader, changed, part):
  with pytest.raises(UserError) as caught:
    reader.read(pictures(changed), "a", [0, 0])
  assert part in str(caught.value)


@pytest.mark.parametrize("size", [(8000, 8000), (100_000, 100_000)])
def test_a_bomb_is_refused_by_its_header(reader, size, monkeypatch):
  def decoded(data):
    raise AssertionError("its pixels were decoded")

  monkeypatch.setattr(images, "decode", decoded)
  with pytest.raises(UserError, match="pixels|are no image"):
    reader.read(pictures({"primary": png_bomb(*size)}), "go", [0, 0])


@pytest.mark.parametrize(
  ("state", "part"),
  [
    (None, "expected 2 numbers: x, yaw"),
    ([1, 2, 3], "int64[3]"),
    ([[1, 2]], "int64[1, 2]"),
    ([1, [2]], "no list of numbers"),
    (["a", "b"], "expected 2 numbers"),
    ([True, False], "bool[2]"),
    ([1.0, float("nan")], "NaN"),
    ([1e300, 0.0], "NaN or infinity"),
  ],
)
def test_wrong_states_are_refused(reader, state, part):
  with pytest.raises(UserError) as caught:
    reader.read(pictures(), "go", state)
  assert part in str(caught.value)


def test_a_state_for_a_policy_that_reads_none_is_refused(tokenizer):
  spec = ObservationSpec()
  blind = Reader(spec, {"primary": (24, 32)}, Prompt(tokenizer, 24, 9))
  only = {"primary": np.zeros((24, 32, 3), np.uint8)}
  assert blind.read(only, "go", None).state is None
  with pytest.raises(UserError, match="expected 0 numbers"):
    blind.read(only, "go", [1.0])


@pytest.mark.parametrize("text", [None, 3, b"go", "", "a" * 3000, "word " * 50])
def test_wrong_instructions_are_refused(reader, text):
  with pytest.raises(UserError, match="instruction|a prompt of"):
    reader.read(pictures(), text, [0, 0])


def test_sizes_are_stated_for_the_policys_cameras(tokenizer):
  spec = ObservationSpec(("primary", "wrist"), missing=("wrist",))
  prompt = Prompt(tokenizer, 24, 9)
  Reader(spec, {"primary": (24, 32)}, prompt)
  for sizes in ({}, SIZES, {"primary": (0, 4)}):
    with pytest.raises(UserError):
      Reader(spec, sizes, prompt)


def test_an_honest_request_fits_the_limit_of_bytes(tokenizer):
  size = 128, 160
  spec, prompt = ObservationSpec(history=2), Prompt(tokenizer, 24, 9)
  limit = Reader(spec, {"primary": size}, prompt).max_bytes
  white = len(json.dumps(np.full((2, *size, 3), 255).tolist()))
  assert white < limit < 1.1 * white

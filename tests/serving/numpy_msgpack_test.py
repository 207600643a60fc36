"""Arrays in msgpack: exact, and nothing but arrays of the bytes sent."""

import msgpack
import numpy as np
import pytest

from rt2_jax.errors import UserError
from rt2_jax.serving import numpy_msgpack


@pytest.mark.parametrize(
  "array",
  [
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    np.float32([[0.1, np.nan, -np.inf]]),
    np.zeros((0, 7)),
    np.asarray([True, False]),
    np.arange(3, dtype=">i4"),
    np.asarray(5, np.int64),
  ],
  ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_arrays_come_back_bit_for_bit(array):
  back = numpy_msgpack.unpackb(numpy_msgpack.packb({"a": [array]}))["a"][0]
  assert back.dtype == array.dtype and back.shape == array.shape
  assert back.tobytes() == array.tobytes()


def test_scalars_and_plain_values_come_back():
  value = {"n": np.float32(1.5), "text": "é", "list": [1, None, True], 3: b"x"}
  back = numpy_msgpack.unpackb(numpy_msgpack.packb(value))
  assert back == value and isinstance(back["n"], np.float32)


@pytest.mark.parametrize(
  "value", [np.asarray([None]), np.complex64(1), np.zeros(2, "i4,f4"), {1, 2}]
)
def test_other_values_are_not_written(value):
  with pytest.raises(TypeError, match="expected"):
    numpy_msgpack.packb(value)


def array(**changed):
  """A message that holds an array with some entries changed."""
  fields = {"__ndarray__": True, "data": bytes(12), "dtype": "|u1"}
  fields = fields | {"shape": [2, 6]} | changed
  return msgpack.packb({k.encode(): v for k, v in fields.items()})


@pytest.mark.parametrize(
  ("data", "part"),
  [
    (array(dtype="|O"), "type '|O'"),
    (array(dtype="O8"), "type 'O8'"),
    (array(dtype="|V1"), "type '|V1'"),
    (array(dtype="<c8"), "type '<c8'"),
    (array(dtype="|S12"), "type '|S12'"),
    (array(dtype="i4,f4"), "type 'i4,f4'"),
    (array(dtype="(3,)u1"), "type '(3,)u1'"),
    (array(dtype=b"|u1"), "type b'|u1'"),
    (array(dtype=None), "type None"),
    (array(shape=[2, 7]), "12 bytes, expected 14"),
    (array(shape=[1 << 40, 1 << 40]), "expected 12089"),
    (array(shape=[-2, -6]), "shape [-2, -6]"),
    (array(shape=[True, 12]), "shape [True, 12]"),
    (array(shape=[2.0, 6]), "shape [2.0, 6]"),
    (array(shape=[1] * 7), "at most 6"),
    (array(shape=12), "shape 12"),
    (array(shape=None), "shape None"),
    (array(data="text"), "no bytes"),
    (array(data=None), "no bytes"),
    (msgpack.packb(msgpack.ExtType(4, b"abc")), "extension type 4"),
    (msgpack.packb({b"__npgeneric__": True, b"data": "1"}), "scalar"),
    (
      msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
      "out of its type's range",
    ),
    (b"\xc1", "no msgpack"),
    (b"\x93\x01", "no msgpack"),
    (b"", "no msgpack"),
    (b"\x01\x02", "no msgpack"),
    (b"\x91" * 5000, "msgpack"),
    (msgpack.packb(list(range(5000))), "no msgpack"),
    (b"\xdd\xff\xff\xff\xff", "no msgpack"),
    (b"\xc6\xff\xff\xff\xff", "no msgpack"),
    (b"\xa2\xff\xfe", "no msgpack"),  # a text that is no UTF-8
    (b"\x81\x90\x01", "no msgpack"),  # a list as a key
  ],
)
def test_what_is_no_message_is_refused(data, part):
  with pytest.raises(UserError) as caught:
    numpy_msgpack.unpackb(data)
  assert part in str(caught.value)


def test_an_arrays_memory_is_the_messages():
  data = numpy_msgpack.packb(np.zeros(1000))
  assert not numpy_msgpack.unpackb(data).flags.owndata

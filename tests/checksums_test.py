"""Checksums: any changed bit shows, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rt2_jax import checksums


def sums(x) -> dict[str, str]:
  (found,) = checksums.measure({"x": x}).values()
  return found.sums


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "float16", "int32", "uint8"]
)
def test_any_changed_bit_shows(dtype):
  rng = np.random.default_rng(0)
  x = np.array(jnp.asarray(rng.integers(-9, 9, (4, 3, 5)) / 4).astype(dtype))
  before = sums(x)
  held = ["bfloat16"] if dtype == "float32" else []
  assert list(before) == [dtype, *held]
  for _ in range(20):
    y = x.copy()
    raw = y.view(np.uint8).reshape(-1)
    raw[rng.integers(raw.size)] ^= 1 << rng.integers(8)
    assert sums(y) != before


def test_order_and_shape_count():
  x = np.arange(24, dtype=np.float32).reshape(4, 6)
  different = [x, x[::-1], x[:, ::-1], x.T, x.reshape(6, 4), x.reshape(24)]
  different += [np.roll(x, 1), np.zeros_like(x), np.zeros((4, 6), np.int32)]
  found = {str(sums(np.ascontiguousarray(y))) for y in different}
  assert len(found) == len(different)


def test_the_same_on_any_mesh():
  mesh = jax.make_mesh((2, 4), ("a", "b"))
  x = jax.random.normal(jax.random.key(0), (4, 8, 16))
  for spec in (P(), P("a"), P(None, "b", "a"), P("b", "a")):
    split = jax.device_put(x, NamedSharding(mesh, spec))
    assert sums(split) == sums(x)


def test_a_reader_that_rounds_can_compare():
  x = jax.random.normal(jax.random.key(0), (7, 5))
  kept = sums(x)
  narrow = x.astype(jnp.bfloat16)
  read = checksums.measure({"x": narrow})["x"]
  assert checksums.differs(read, kept) is False
  wide = checksums.measure({"x": narrow.astype("float32")})["x"]
  assert checksums.differs(wide, sums(narrow)) is False
  assert checksums.differs(wide, kept) is True  # float32 itself was rounded
  assert checksums.differs(read, {"int8": "0"}) is None


def test_what_is_not_finite_is_named():
  tree = {"a": jnp.ones(3), "b": [jnp.array([1.0, jnp.nan]), jnp.arange(2)]}
  tree["c"] = jnp.array(-jnp.inf, jnp.bfloat16)
  found = checksums.measure(tree)
  assert [n for n, one in found.items() if not one.finite] == ["b/0", "c"]
  assert checksums.measure({"empty": jnp.zeros((0, 3))})["empty"].finite


def test_positions_of_arrays_beyond_32_bits_differ():
  """Two rows 2^32 elements apart are told from each other."""
  shape = (3, 2**20, 2**12)
  lowered = jax.jit(lambda: checksums._positions(shape)[:, 5, 7]).lower()
  first, second, third = np.asarray(lowered.compile()())
  assert len({first, second, third}) == 3

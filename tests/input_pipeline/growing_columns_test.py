"""Columns that grow by the rows of one shard after the other."""

import numpy as np
import pytest

from rt2_jax.input_pipeline import growing_columns
from rt2_jax.input_pipeline.growing_columns import GrowingColumns


@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_rows_are_joined_in_order(monkeypatch, at_once):
  monkeypatch.setattr(growing_columns, "_AT_ONCE", at_once)
  rng = np.random.default_rng(0)
  parts = [rng.random((n, 3)) for n in (4, 0, 1, 7, 0)]
  joined = GrowingColumns()
  assert joined.length("x") == 0
  for i, part in enumerate(parts):
    joined.add({"x": part, "y": np.full(2, i, np.uint16)})
    assert joined.length("x") == sum(map(len, parts[: i + 1]))
  found = joined.finish()
  np.testing.assert_array_equal(found["x"], np.concatenate(parts))
  assert found["y"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  assert found["y"].dtype == np.uint16


def test_a_wider_type_widens_the_column(monkeypatch):
  monkeypatch.setattr(growing_columns, "_AT_ONCE", 1)
  joined = GrowingColumns()
  joined.add({"x": np.array([2**32 - 1], np.uint32)})
  joined.add({"x": np.array([2**32], np.uint64)})
  joined.add({"x": np.array([7], np.uint32)})
  assert joined.finish()["x"].tolist() == [2**32 - 1, 2**32, 7]


def test_columns_without_rows_keep_their_shape():
  joined = GrowingColumns()
  joined.add({"x": np.zeros((0, 8), np.float32)})
  assert joined.finish()["x"].shape == (0, 8)

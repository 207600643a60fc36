"""Flat names: there and back, and per-layer files stacked or refused."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rt2_jax import trees


def test_flatten_joins_names_and_unflatten_takes_them_apart():
  tree = {"llm": {"layers": {"mlp": 1, "attn": {"w": 2}}}, "step": 3}
  flat = trees.flatten(tree)
  assert flat == {"llm/layers/mlp": 1, "llm/layers/attn/w": 2, "step": 3}
  assert list(flat) == ["llm/layers/mlp", "llm/layers/attn/w", "step"]
  assert trees.unflatten(flat) == tree


def test_flatten_refuses_a_flat_dictionary():
  with pytest.raises(ValueError, match=r"'a/b'.*flat dictionary already"):
    trees.flatten({"a/b": 1})


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_unflatten_refuses_a_leaf_that_is_also_a_parent(names):
  with pytest.raises(ValueError, match="leaf"):
    trees.unflatten(dict.fromkeys(names, 0))


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("llm/layers/11/mlp/linear", ("llm/layers/mlp/linear", 11)),
    (
      "img/Transformer/encoderblock_3/MlpBlock_0/Dense_1/bias",
      ("img/Transformer/encoderblock/MlpBlock_0/Dense_1/bias", 3),
    ),
    ("llm/layers/mlp/linear", ("llm/layers/mlp/linear", None)),
    ("img/pos_embedding", ("img/pos_embedding", None)),
  ],
)
def test_split_layer(name, expected):
  assert trees.split_layer(name) == expected


def test_stack_layers_orders_by_number_and_keeps_the_rest():
  flat = {f"llm/layers/{i}/mlp/linear": np.full((2,), i) for i in range(12)}
  flat |= {f"img/x/encoderblock_{i}/scale": np.ones(3) * i for i in (1, 0)}
  flat["llm/final_norm/scale"] = np.zeros(2)
  stacked = trees.stack_layers(flat)
  assert sorted(stacked) == [
    "img/x/encoderblock/scale",
    "llm/final_norm/scale",
    "llm/layers/mlp/linear",
  ]
  np.testing.assert_array_equal(
    stacked["llm/layers/mlp/linear"], np.arange(12)[:, None] * [1, 1]
  )
  np.testing.assert_array_equal(
    stacked["img/x/encoderblock/scale"], [[0] * 3, [1] * 3]
  )
  assert stacked["llm/final_norm/scale"] is flat["llm/final_norm/scale"]
  assert trees.stack_layers(stacked) == stacked


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_stack_layers_names_a_missing_layer(lost):
  """Also the last one: the other parameters know how many layers there are."""
  names = [f"llm/layers/{i}/{p}" for i in range(3) for p in ("a/w", "b/w")]
  names.remove(f"llm/layers/{lost}/a/w")
  with pytest.raises(
    ValueError, match=rf"'llm/layers/a/w' without layers \[{lost}\]"
  ):
    trees.stack_layers({name: np.zeros(2) for name in names})


def test_stack_layers_refuses_layers_of_different_shapes():
  flat = {"layers/0/w": np.zeros(2), "layers/1/w": np.zeros(3)}
  with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
    trees.stack_layers(flat)


def test_stack_layers_refuses_both_layouts_at_once():
  flat = {"layers/0/w": np.zeros(2), "layers/w": np.zeros((1, 2))}
  with pytest.raises(ValueError, match="both stacked and per layer"):
    trees.stack_layers(flat)


def test_importing_trees_needs_no_jax():
  code = "import sys, rt2_jax.trees; print({'jax', 'flax'} & set(sys.modules))"
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == "set()"

"""Flat names: there and back, and the layer that a name belongs to."""

import pathlib
import subprocess
import sys

import pytest

from rt2_jax import trees
from rt2_jax.errors import UserError
from rt2_jax.models.lora_config import LoraConfig


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


@pytest.mark.parametrize("pattern", ["*_lora/*", "llm/layers/(", 5])
def test_what_is_no_pattern_is_named(pattern):
  with pytest.raises(UserError, match="config.x .*, expected a regular expr"):
    trees.matching(["llm/layers/w_lora/a"], [".*", pattern], "config.x")
  with pytest.raises(UserError, match="got config.model.lora_targets "):
    LoraConfig(4, 16.0, (pattern,))

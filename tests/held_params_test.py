"""The platform says how parameters are held."""

import types

import jax
import numpy as np
import pytest

from rt2_jax import held_params, trees
from tests import tiny_models


@pytest.fixture
def params():
  config = tiny_models.config("gemma1", 40)
  return jax.tree.map(np.asarray, tiny_models.params(config))


def mesh(platform):
  device = types.SimpleNamespace(platform=platform)
  return types.SimpleNamespace(devices=np.array([device]))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_loop_over_layers_reads_them_from_one_array(params, platform):
  assert held_params.as_read(params, mesh(platform)) is params


def test_gpus_read_arrays_of_each_layer(params):
  held = trees.flatten(held_params.as_read(params, mesh("gpu")))
  assert len(held["llm/layers/mlp/linear"]) == 3
  assert held["llm/final_norm/scale"].shape == (48,)


def test_shapes_say_it_without_arrays():
  config = tiny_models.config("gemma1", 40)
  shapes = jax.eval_shape(
    lambda tree: held_params.as_read(tree, mesh("gpu")),
    held_params.held_params(config),
  )
  linear = trees.flatten(shapes)["llm/layers/mlp/linear"]
  assert [x.shape for x in linear] == 3 * [(96, 48)]

"""The platform says how parameters are held."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rt2_jax import held_params, sharding, trees
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


def test_each_layer_gets_arrays_of_its_own(params):
  flat = trees.flatten(params)
  held = trees.flatten(held_params.apart(dict(params)))
  assert held.keys() == flat.keys()
  stacked = {name for name in flat if isinstance(held[name], list)}
  for name in stacked:
    np.testing.assert_array_equal(np.stack(held[name]), flat[name])
  assert {len(held[n]) for n in stacked if n.startswith("img/")} == {2}
  assert {len(held[n]) for n in stacked if n.startswith("llm/")} == {3}
  rest = {"img/pos_embedding", "img/head/kernel", "llm/final_norm/scale"}
  assert rest <= flat.keys() - stacked
  assert not any("layers" in name for name in flat.keys() - stacked)


def test_the_tree_is_emptied_so_that_nothing_is_held_twice(params):
  held_params.apart(params)
  assert not params


def test_layers_are_split_over_the_mesh_as_their_stack_was(params):
  mesh = sharding.make_mesh({"fsdp": 4, "model": 2})
  splits = sharding.state_shardings(params, mesh)
  placed = jax.device_put(params, splits)
  specs = {n: s.spec for n, s in trees.flatten(splits).items()}
  held = trees.flatten(held_params.apart(placed))
  lists = {n: x for n, x in held.items() if isinstance(x, list)}
  for name, arrays in lists.items():
    for array in arrays:
      expected = NamedSharding(mesh, P(*specs[name][1:]))
      assert array.sharding.is_equivalent_to(expected, array.ndim), name
  kernel = lists["llm/layers/mlp/linear"][0]
  assert len(kernel.devices()) == 8
  assert kernel.addressable_shards[0].data.shape == (48, 12)


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

"""Every shipped experiment: read whole, of the size its name says, sharded."""

import importlib
import json
import math
import re

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from rt2_jax import optimizer, sharding
from rt2_jax.augment import Augmentation
from rt2_jax.models.vlm import init_params
from rt2_jax.optimizer import make_optimizer
from rt2_jax.tpu.chips import SLICES, chip_of
from rt2_jax.train_config import TrainConfig
from rt2_jax.train_state import Trainer
from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py"))
RECIPES = [name for name in NAMES if name.startswith("rt2_")]
# What the public checkpoint of that name has, where it is not what it says.
BILLIONS = {"rt2_paligemma2_10b": 9.66}


def read(name: str) -> TrainConfig:
  module = importlib.import_module(f"configs.{name}")
  return TrainConfig.from_dict(module.get_config().to_dict())


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_read_whole(name, monkeypatch):
  monkeypatch.chdir(ROOT)
  fields = importlib.import_module(f"configs.{name}").get_config().to_dict()
  assert json.loads(json.dumps(fields))
  config = TrainConfig.from_dict(fields)
  optimizer.learning_rate(config.optimizer, config.num_steps)
  make_optimizer(config.optimizer, config.num_steps)
  assert math.isclose(sum(config.weights([1] * len(config.source_names))), 1.0)
  for source in config.sources.values():
    assert source.space and source.eval_split


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_parameters_that_its_name_and_header_say(name):
  config = read(name)
  shapes = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
  billions = optimizer.count_parameters(shapes) / 1e9
  said = float(re.search(r"_(\d+)b", name)[1])
  assert abs(billions / BILLIONS.get(name, said) - 1) < 0.03
  header = importlib.import_module(f"configs.{name}").__doc__
  if " B parameters" in header:
    assert f"{billions:.2f} B parameters" in header


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_sharded_on_its_slice(name):
  config = read(name)
  assert config.topology in SLICES
  chips = math.prod(map(int, config.topology.partition(":")[2].split("x")))
  shapes = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
  sizes = sharding.mesh_shape(config.mesh, shapes, chips)
  rows = sizes["slice"] * sizes["data"] * sizes["fsdp"] * config.microbatches
  assert config.batch_size % rows == 0
  mesh = AbstractMesh(
    tuple(sizes.values()),
    sharding.MESH_AXES,
    axis_types=(AxisType.Auto,) * len(sizes),
  )
  trainer = Trainer(
    model=config.model,
    optimizer=make_optimizer(config.optimizer, config.num_steps),
    augmentation=Augmentation(),
    action_tokenizers=(None,),
    seed=0,
    mesh=mesh,
    trained=tuple(config.optimizer.trained),
    frozen=tuple(config.optimizer.frozen),
    param_dtype=config.optimizer.param_dtype,
    frozen_dtype=config.optimizer.frozen_dtype,
  )
  state = trainer.abstract_state()
  if config.optimizer.name == "adafactor":
    kept = optimizer.count_parameters(state.opt_state)
    assert kept < 1.2e-3 * optimizer.count_parameters(state.params)
  leaves = jax.tree.leaves(state)
  here = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in leaves
  )
  whole = sum(x.size * x.dtype.itemsize for x in leaves)
  # Norms, biases and a few of Adafactor's vectors are all that is held whole.
  assert here < 1.03 * whole / sizes["fsdp"] + 50e6
  assert here < 0.5 * chip_of(config.topology).hbm_bytes

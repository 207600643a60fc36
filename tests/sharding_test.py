"""Tables of names against every variant, and meshes of eight devices."""

import concurrent.futures
import importlib
import multiprocessing
import os

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rt2_jax import sharding, trees
from rt2_jax.input_pipeline.mixture import Mixture
from rt2_jax.models import variants
from rt2_jax.models.vlm import init_params
from rt2_jax.sharding import make_mesh
from rt2_jax.tpu import ahead_of_time
from rt2_jax.train_config import TrainConfig
from tests.conftest import ROOT

CHOSEN = dict.fromkeys(sharding.MESH_AXES, -1)


def abstract_params(llm="gemma_tiny", img="tiny/16", image_size=64):
  image_size = 224 if img.endswith("/14") else image_size
  config = variants.vlm(img, llm, image_size=image_size, vocab_size=3200)
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


@pytest.mark.parametrize("llm", list(variants.DECODERS))
def test_every_parameter_of_every_decoder_has_a_place(llm):
  mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
  placed = sharding.state_shardings(abstract_params(llm), mesh)
  flat = trees.flatten(placed)
  split = [name for name, s in flat.items() if s.spec != () and any(s.spec)]
  assert len(split) >= 12


def test_a_layer_axis_is_never_split():
  mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
  placed = trees.flatten(sharding.state_shardings(abstract_params(), mesh))
  for name, s in placed.items():
    if "layers/" in name or "encoderblock/" in name:
      assert s.spec[0] is None, name
  assert placed["llm/layers/mlp/linear"].spec == P(None, "model", "fsdp")


def test_an_unknown_parameter_is_named():
  shape = jax.ShapeDtypeStruct((4, 4), np.float32)
  with pytest.raises(ValueError, match="'llm/adapter/w', which no row match"):
    sharding.state_shardings(
      {"llm": {"adapter": {"w": shape}}}, make_mesh({"data": 8})
    )


def test_a_dimension_that_does_not_divide_is_named():
  mesh = make_mesh({"data": 1, "fsdp": 1, "model": 8})
  with pytest.raises(
    ValueError,
    match=r"got parameter img/.*/key/kernel of shape \(4, 192, 4, 48\), whose "
    r"dimension 4 does not divide by the 8 devices of mesh axis 'model'; "
    r"choose a smaller config.mesh.model",
  ):
    sharding.state_shardings(abstract_params(), mesh)


@pytest.mark.parametrize(
  ("img", "llm", "chips", "slices", "chosen"),
  [
    ("So400m/14", "gemma_2b", 1, 1, (1, 1, 1, 1)),
    ("So400m/14", "gemma_2b", 64, 1, (1, 1, 64, 1)),
    # 1152 divides by 128 and not by 256.
    ("So400m/14", "gemma_2b", 256, 1, (1, 2, 128, 1)),
    ("So400m/14", "gemma_2b", 512, 1, (1, 4, 128, 1)),
    ("So400m/14", "gemma_2b", 512, 2, (2, 2, 128, 1)),
    ("22B/14", "ul2_32b", 1024, 1, (1, 4, 256, 1)),
    ("22B/14", "ul2_32b", 6144, 2, (2, 12, 256, 1)),
    ("e/14", "gemma_7b", 24, 1, (1, 3, 8, 1)),
  ],
)
def test_the_chosen_mesh(img, llm, chips, slices, chosen):
  params = abstract_params(llm, img)
  sizes = sharding.mesh_shape(CHOSEN, params, chips, slices)
  assert tuple(sizes.values()) == chosen


def test_what_is_given_is_kept_and_the_rest_is_chosen():
  params = abstract_params()
  sizes = sharding.mesh_shape(CHOSEN | {"model": 2}, params, 8)
  assert sizes == {"slice": 1, "data": 1, "fsdp": 4, "model": 2}
  sizes = sharding.mesh_shape({"data": -1, "fsdp": 2, "model": 2}, params, 8)
  assert sizes == {"slice": 1, "data": 2, "fsdp": 2, "model": 2}


@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 4, 1), (-1, 3, 1), (1, 1, 1)])
def test_a_mesh_that_does_not_multiply_is_refused(shape):
  named = dict(zip(("data", "fsdp", "model"), shape, strict=True))
  with pytest.raises(ValueError, match=r"got config.mesh .* 8 devices"):
    make_mesh(named)


def test_a_mesh_that_joins_slices_is_refused():
  with pytest.raises(ValueError, match=r"in 2 slices, 'slice' a multiple of 2"):
    sharding.mesh_shape({"data": 4, "fsdp": 128}, {}, 512, 2)


def test_a_batch_that_does_not_divide_is_refused():
  mesh = make_mesh({"data": 4, "fsdp": 2, "model": 1})
  with pytest.raises(ValueError, match="batch_size = 12, expected a multiple"):
    sharding.host_rows(12, mesh)
  np.testing.assert_array_equal(sharding.host_rows(16, mesh), range(16))


def test_a_host_that_a_mesh_leaves_out_has_no_rows():
  mesh = sharding.make_mesh({"data": 2}, jax.devices()[:2])
  assert sharding.host_rows(4, mesh).tolist() == [0, 1, 2, 3]
  assert sharding.host_rows(4, mesh, process_index=1).tolist() == []


def test_rows_reach_the_devices_in_order():
  mesh = make_mesh({"slice": 2, "fsdp": 2, "model": 2})
  rows = np.arange(8)[:, None] * np.ones((1, 3))
  placed = sharding.same_rows_to_devices({"x": rows}, mesh)["x"]
  np.testing.assert_array_equal(placed, rows)
  assert placed.addressable_shards[0].data.shape == (2, 3)


# Every shipped config on its own slice, and on others that README names; "*2":
# two slices. A host holds 2 x 2 chips, which lie apart in the batch's order.
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("rt2_*.py"))
SLICES = {name: {"": {}, "*2": {}} for name in RECIPES}
SLICES["rt2_paligemma_3b"] |= {
  "v5e:4x4": {},
  "v5e:8x16": {},
  "v6e:16x16": {},
  "v5p:8x8x8": {},
  "v5e:8x8": {"model": 4},
  "v5e:8x8*2": {"data": 2, "model": 2},
}


@pytest.fixture(scope="module")
def real_hosts():
  """(config, topology) -> batch size, copies of a row, and hosts: rows, shards.

  From the descriptions that the TPU's own library gives of its slices.
  """
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
    return pool.submit(_describe_hosts).result()


def _describe_hosts():
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  jax.config.update("jax_platforms", "cpu")
  return {
    (name, topology): _hosts_of(name, topology, mesh)
    for name, cases in SLICES.items()
    for topology, mesh in cases.items()
  }


def _hosts_of(name, topology, axes):
  module = importlib.import_module(f"configs.{name}")
  config = TrainConfig.from_dict(
    module.get_config().to_dict() | ({"mesh": CHOSEN | axes} if axes else {})
  )
  if topology in ("", "*2"):
    topology = config.topology + topology
  mesh = config.make_mesh(ahead_of_time.devices(topology))
  size = config.batch_size * sharding.num_slices(list(mesh.devices.flat))
  shards = sharding.batch_sharding(mesh).devices_indices_map((size,))
  hosts = {}
  for device, (shard,) in shards.items():
    process = device.process_index
    if process not in hosts:
      hosts[process] = sharding.host_rows(size, mesh, process_index=process), []
    rows, placed = hosts[process]
    placed.append((shard, rows[sharding.places_of(shard, rows, size)]))
  return size, mesh.shape["model"], list(hosts.values())


@pytest.mark.parametrize("name", RECIPES)
def test_hosts_of_a_real_slice_load_their_own_rows(name, real_hosts):
  for topology in SLICES[name]:
    size, copies, hosts = real_hosts[name, topology]
    loaded = sum(len(rows) for rows, _ in hosts)
    if copies == 1:
      assert loaded == size, (topology, loaded)
    trained = np.concatenate([rows for _, all_ in hosts for _, rows in all_])
    np.testing.assert_array_equal(
      np.sort(trained), np.repeat(np.arange(size), copies), topology
    )
    for rows, placed in hosts:
      assert (np.diff(rows) > 0).all()
      assert set(rows) == {row for _, own in placed for row in own}
      for shard, own in placed:
        np.testing.assert_array_equal(own, np.arange(size)[shard])


def test_hosts_of_a_real_slice_read_the_batch_of_one_host(real_hosts):
  mixture = Mixture((1000, 70, 3_000_000), (3.0, 1.0, 4.0), seed=5)
  for name, topology in (
    ("rt2_paligemma_3b", ""),
    ("rt2_pali_x_55b", "*2"),
    ("rt2_paligemma_3b", "v5e:8x8"),
  ):
    size, _, hosts = real_hosts[name, topology]
    whole = mixture.draw(7, np.arange(size), size)
    for rows, _ in hosts:
      drawn = mixture.draw(7, rows, size)
      for ours, all_ in zip(drawn, whole, strict=True):
        np.testing.assert_array_equal(ours, all_[rows])


def test_a_host_of_a_real_slice_owns_rows_that_lie_apart(real_hosts):
  """So that the tests above are about something."""
  size, _, hosts = real_hosts["rt2_paligemma_3b", ""]
  assert (size, len(hosts)) == (2048, 64)
  rows, _ = hosts[0]
  np.testing.assert_array_equal(rows, [*range(16), *range(64, 80)])

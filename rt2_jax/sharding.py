"""Where every array lives: parameters by their table, activations by another.

Mesh axes, from the slowest network to the fastest: "slice" repeats the model
on slices that only the data centre's network connects, "data" repeats it within
a slice, "fsdp" splits parameters and batch, "model" splits heads and hidden
units (tensor parallelism). Everything is `jax.jit` with `NamedSharding`; models
name their axes and know no mesh.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rt2_jax import parameters, trees
from rt2_jax.errors import UserError

MESH_AXES = ("slice", "data", "fsdp", "model")
_BATCH_AXES = ("slice", "data", "fsdp")

# Beyond this many chips, gathering a layer's weights over the torus costs more
# than the memory that a finer split would save.
_LARGEST_FSDP = 256

# Adafactor's row and column statistics lack some of a parameter's dimensions:
# the longest, where it divides, is split over "fsdp".
_STATISTICS = re.compile(r"(^|/)v_(row|col)/")

# Logical axis of an activation -> mesh axes, for flax's logical constraints.
ACTIVATION_RULES = (
  ("batch", _BATCH_AXES),
  ("length", None),
  ("embed", None),
  ("vocab", None),
)


def mesh_shape(
  wanted: Mapping[str, int], params: Any, num_devices: int, num_slices: int = 1
) -> dict[str, int]:
  """Devices along each of `MESH_AXES`, with every -1 chosen.

  "slice" becomes the number of slices, "model" 1, "fsdp" the largest number
  that divides both a slice and every dimension it splits, "data" the rest. On
  256 chips that is 2 x 128 for PaliGemma: its encoder is 1152 = 9 * 128 wide,
  which 256 does not divide.

  Args:
    wanted: devices along each axis, -1 for what suits; an axis left out is 1.
    params: of the model; arrays or ShapeDtypeStructs.
    num_devices: in all slices together.
    num_slices: parts that only the data centre's network connects.

  Raises:
    UserError: the numbers do not multiply to the number of devices.
  """
  assert set(wanted) <= set(MESH_AXES), wanted
  sizes = {axis: wanted.get(axis, 1) for axis in MESH_AXES}
  if sizes["slice"] == -1:
    sizes["slice"] = num_slices
  if sizes["model"] == -1:
    sizes["model"] = 1
  known = math.prod(size for size in sizes.values() if size != -1)
  rest = num_devices // known if known > 0 else 0
  if sizes["fsdp"] == -1:
    divides = [n for n in range(1, _LARGEST_FSDP + 1) if not rest % n]
    sizes["fsdp"] = max(
      n for n in divides if n == 1 or _divides(params, sizes | {"fsdp": n})
    )
    rest //= sizes["fsdp"]
  if sizes["data"] == -1:
    sizes["data"] = rest
  if math.prod(sizes.values()) != num_devices or sizes["slice"] % num_slices:
    raise UserError(
      f"got config.mesh {dict(wanted)}, which takes "
      f"{math.prod(sizes.values())} devices at most, expected axes that "
      f"multiply to {num_devices} devices in {num_slices} slices, 'slice' a "
      f"multiple of {num_slices}; -1 chooses"
    )
  return sizes


def make_mesh(
  shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh whose inner axes follow the chips' own network.

  Args:
    shape: devices along each of `MESH_AXES`, from `mesh_shape`; an axis left
      out is 1.
    devices: default: all of them.

  Raises:
    UserError: the numbers do not multiply to the number of devices.
  """
  devices = sorted(devices or jax.devices(), key=_slice_index)
  sizes = mesh_shape(shape, {}, len(devices), num_slices(devices))
  sizes = tuple(sizes.values())
  slices = [
    mesh_utils.create_device_mesh(
      sizes[1:], list(chips), allow_split_physical_axes=True
    )
    for chips in np.split(np.asarray(devices), sizes[0])
  ]
  # Auto: the partitioner completes what the two tables leave open.
  return Mesh(
    np.stack(slices), MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes)
  )


def num_slices(devices: Sequence[jax.Device]) -> int:
  """How many slices the devices belong to."""
  return len(set(map(_slice_index, devices)))


def _slice_index(device: jax.Device) -> int:
  return getattr(device, "slice_index", 0)


def state_shardings(tree: Any, mesh: Mesh) -> Any:
  """NamedShardings for a tree of parameters or optimizer states.

  Args:
    tree: arrays or ShapeDtypeStructs whose names end in parameter names.
    mesh: from `make_mesh`.

  Raises:
    UserError: a name that no row matches, or a dimension that does not
      divide by its mesh axis.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  shardings = []
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    spec = _spec(name, leaf, mesh.shape)
    for size, axis in zip(leaf.shape, spec, strict=True):
      if axis is not None and size % mesh.shape[axis]:
        raise UserError(
          f"got parameter {name} of shape {tuple(leaf.shape)}, whose dimension "
          f"{size} does not divide by the {mesh.shape[axis]} devices of mesh "
          f"axis {axis!r}; choose a smaller config.mesh.{axis}"
        )
    shardings.append(NamedSharding(mesh, spec))
  return treedef.unflatten(shardings)


def abstract(tree: Any, shardings: Any) -> Any:
  """Describes arrays by ShapeDtypeStructs with the given shardings."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def _spec(name: str, leaf: Any, sizes: Mapping[str, int]) -> P:
  """The split of a parameter's row, aligned to the leaf's last dimensions."""
  split = P()
  if leaf.size > 1:  # counters and placeholders have nothing to split
    statistics = _STATISTICS.search(name)
    split = _longest(leaf, sizes) if statistics else parameters.row(name).split
  return P(*[None] * (leaf.ndim - len(split)), *split)


def _longest(leaf: Any, sizes: Mapping[str, int]) -> P:
  longest = max(leaf.shape)
  after = leaf.ndim - 1 - leaf.shape.index(longest)
  return P() if longest % sizes["fsdp"] else P("fsdp", *[None] * after)


def _divides(params: Any, sizes: Mapping[str, int]) -> bool:
  """Whether "fsdp" divides every dimension that it would split."""
  leaves = trees.flatten(params).items()
  return not any(
    size % sizes["fsdp"]
    for name, leaf in leaves
    for size, axis in zip(leaf.shape, _spec(name, leaf, sizes), strict=True)
    if axis == "fsdp"
  )


@contextlib.contextmanager
def scope(mesh: Mesh) -> Iterator[None]:
  """The mesh in scope, and what its axes mean to the models' activations.

  Without it flax drops logical constraints in silence.
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(ACTIVATION_RULES):
    yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch are split over every device that holds whole rows."""
  return NamedSharding(mesh, P(_BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def host_rows(
  batch_size: int,
  mesh: Mesh,
  microbatches: int = 1,
  process_index: int | None = None,
) -> np.ndarray:
  """Lists the rows of the global batch that one process loads, int64[n].

  They are those of its own devices and no others, in rising order. They may
  lie apart: a host of a TPU slice holds a square of chips, which the order of
  the mesh does not keep together.

  Args:
    batch_size: rows of the global batch.
    mesh: from `make_mesh`; its devices may be descriptions.
    microbatches: parts that a batch is computed in.
    process_index: default: this process.

  Raises:
    UserError: see `check_batch`.
  """
  check_batch(batch_size, mesh.shape, microbatches)
  if process_index is None:
    process_index = jax.process_index()
  shards = batch_sharding(mesh).devices_indices_map((batch_size,))
  starts = {
    shard.indices(batch_size)[:2]
    for device, (shard,) in shards.items()
    if device.process_index == process_index
  }
  spans = [np.arange(*span) for span in sorted(starts)]
  return np.concatenate([np.arange(0), *spans])  # a mesh may leave a host out


def places_of(shard: slice, rows: np.ndarray, batch_size: int) -> slice:
  """Finds a device's rows among those that its host holds.

  Args:
    shard: the device's rows of the global batch.
    rows: int64[n], rising, from `host_rows`.
    batch_size: rows of the global batch.

  Returns:
    Places in `rows`.
  """
  first, stop, _ = shard.indices(batch_size)
  start = int(np.searchsorted(rows, first))
  places = slice(start, start + stop - first)
  assert np.array_equal(rows[places], np.arange(first, stop)), (shard, rows)
  return places


def batch_shards(sizes: Mapping[str, int]) -> int:
  """Parts in which a batch is split over a mesh of these sizes."""
  return math.prod(sizes[axis] for axis in _BATCH_AXES)


def check_batch(
  batch_size: int, sizes: Mapping[str, int], microbatches: int
) -> None:
  """
  Raises:
    UserError: the batch does not divide by the devices that split it, times
      the parts in which each of them computes its rows.
  """
  shards = batch_shards(sizes)
  parts = shards * microbatches
  if batch_size % parts:
    lower = batch_size // parts * parts
    raise UserError(
      f"got config.batch_size = {batch_size}, expected a multiple of {parts}: "
      f"slice x data x fsdp = {shards} devices, times config.microbatches = "
      f"{microbatches}; such as {lower or parts} or {lower + parts}"
    )


def to_devices(tree: Any, rows: np.ndarray, batch_size: int, mesh: Mesh) -> Any:
  """Makes global arrays, split over the mesh, of the rows that a host holds.

  Args:
    tree: arrays of n rows.
    rows: int64[n], which rows of the global batch they are, from `host_rows`.
    batch_size: rows of the global arrays.
    mesh: where they go.
  """
  sharding = batch_sharding(mesh)

  def place(x):
    x = np.asarray(x)
    assert len(x) == len(rows), (x.shape, rows)
    # The global shape is stated: JAX would infer it from the rows of one host,
    # and takes rows that lie apart for more of them.
    return jax.make_array_from_callback(
      (batch_size, *x.shape[1:]),
      sharding,
      lambda index: x[places_of(index[0], rows, batch_size)],
    )

  return jax.tree.map(place, tree)


def same_rows_to_devices(tree: Any, mesh: Mesh) -> Any:
  """Makes global arrays of rows that every process holds whole.

  Their number must be a multiple of `batch_shards`.
  """
  count = len(jax.tree.leaves(tree)[0])
  return to_devices(tree, np.arange(count), count, mesh)

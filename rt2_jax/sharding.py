"""Where every array lives: one table for parameters, one for activations.

Mesh axes: "data" repeats the model, "fsdp" splits parameters and batch,
"model" splits heads and hidden units (tensor parallelism). Everything is
`jax.jit` with `NamedSharding`; models name their axes and know no mesh.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rt2_jax import trees

MESH_AXES = ("data", "fsdp", "model")

# Name pattern -> how the last dimensions are split; the first match wins. Axes
# to the left, such as the stacked layers, stay whole, so that a scan over
# layers moves no data. Optimizer states end in their parameter's name and
# follow it.
PARAM_RULES: Sequence[tuple[str, P]] = (
  (r"(scale|bias)$", P()),
  (r"img/embedding/kernel$", P("fsdp")),
  (r"img/pos_embedding$", P("fsdp")),
  (r"img/.*/(query|key|value)/kernel$", P("fsdp", "model", None)),
  (r"img/.*/out/kernel$", P("model", None, "fsdp")),
  (r"img/.*/Dense_0/kernel$", P("fsdp", "model")),
  (r"img/.*/Dense_1/kernel$", P("model", "fsdp")),
  (r"img/head/kernel$", P("fsdp")),
  (r"llm/embedder/input_embedding$", P("fsdp")),
  (r"llm/.*/attn/q(kv)?_einsum/w$", P("model", "fsdp", None)),
  # Key and value heads may be fewer than the chips of the model axis.
  (r"llm/.*/attn/kv_einsum/w$", P("fsdp", None)),
  (r"llm/.*/attn/attn_vec_einsum/w$", P("model", None, "fsdp")),
  (r"llm/.*/mlp/gating_einsum$", P("fsdp", "model")),
  (r"llm/.*/mlp/linear$", P("model", "fsdp")),
)

# Logical axis of an activation -> mesh axes, for flax's logical constraints.
ACTIVATION_RULES = (
  ("batch", ("data", "fsdp")),
  ("length", None),
  ("embed", None),
  ("vocab", None),
)


def make_mesh(
  shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh over all devices.

  Args:
    shape: devices along each of `MESH_AXES`; one of them may be -1, "the rest".
    devices: default: all of them.

  Raises:
    ValueError: the numbers do not multiply to the number of devices.
  """
  devices = list(devices or jax.devices())
  assert set(shape) == set(MESH_AXES), shape
  sizes = [shape[axis] for axis in MESH_AXES]
  if -1 in sizes:
    known = math.prod(s for s in sizes if s != -1)
    sizes[sizes.index(-1)] = len(devices) // max(known, 1)
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"got config.mesh {dict(shape)}, which takes {math.prod(sizes)} devices "
      f"at most, expected axes that multiply to {len(devices)} devices"
    )
  # Auto: the partitioner completes what the two tables leave open.
  return jax.make_mesh(
    sizes, MESH_AXES, (AxisType.Auto,) * len(sizes), devices=devices
  )


def state_shardings(tree: Any, mesh: Mesh) -> Any:
  """NamedShardings for a tree of parameters or optimizer states.

  Args:
    tree: arrays or ShapeDtypeStructs whose names end in parameter names.
    mesh: from `make_mesh`.

  Raises:
    ValueError: a name that no rule matches, or a dimension that does not
      divide by its mesh axis.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  shardings = []
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # Counters have no dimension to split.
    spec = trees.first_match(name, PARAM_RULES) if leaf.ndim else P()
    shardings.append(NamedSharding(mesh, _placed(name, leaf.shape, spec, mesh)))
  return treedef.unflatten(shardings)


def _placed(name: str, shape: Sequence[int], spec: P, mesh: Mesh) -> P:
  """`spec` aligned to the last dimensions, once they are known to divide."""
  spec = P(*[None] * (len(shape) - len(spec)), *spec)
  for size, axis in zip(shape, spec, strict=True):
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(
        f"got parameter {name} of shape {tuple(shape)}, whose dimension "
        f"{size} does not divide by the {mesh.shape[axis]} devices of mesh "
        f"axis {axis!r}; choose a smaller config.mesh.{axis}"
      )
  return spec


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a batch are split over every device that holds whole rows."""
  return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def host_rows(batch_size: int, mesh: Mesh) -> range:
  """The rows of the global batch that this process loads.

  Raises:
    ValueError: the batch does not divide by the devices that split it.
  """
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch_size % shards:
    raise ValueError(
      f"got config.batch_size = {batch_size}, expected a multiple of "
      f"data x fsdp = {shards} devices"
    )
  index = batch_sharding(mesh).devices_indices_map((batch_size,))
  mine = [index[d][0] for d in mesh.local_devices]
  start = min(s.start or 0 for s in mine)
  stop = max(batch_size if s.stop is None else s.stop for s in mine)
  return range(start, stop)


def to_devices(tree: Any, mesh: Mesh) -> Any:
  """This process's rows -> global arrays, split over the mesh."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )

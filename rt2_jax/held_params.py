"""How a policy holds its parameters: what it restores, and lays out anew."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rt2_jax import parameters, trees
from rt2_jax.models.variants import VLMConfig
from rt2_jax.models.vlm import abstract_params

# Platforms whose compilers copy a layer's weights out of an array of all
# layers: 44 ms of an action of 3B on an H100, where 27 are enough.
_LAYERS_APART = ("cuda", "gpu")


def held_params(model: VLMConfig) -> dict:
  """Returns ShapeDtypeStructs of the parameters, as checkpoints are restored.

  Matrices and tables are stored in the compute dtype. Every call would cast
  them anyway, so answers are the same, and half as many bytes are read. Scales
  and biases, some of which act in float32, stay float32.
  """
  shapes = abstract_params(model)

  def held(name, x):
    if parameters.row(name).float32:
      return x
    part = model.img if name.startswith("img/") else model.llm
    return jax.ShapeDtypeStruct(x.shape, part.dtype)

  flat = trees.flatten(shapes)
  return trees.unflatten({name: held(name, x) for name, x in flat.items()})


def as_read(params: dict, mesh: Mesh) -> dict:
  """Lays parameters out as the mesh's platform reads them fastest.

  Args:
    params: see `held_params`; on GPUs they are taken out of this tree.
    mesh: whose devices hold them.
  """
  in_lists = mesh.devices.flat[0].platform in _LAYERS_APART
  return apart(params) if in_lists else params


def apart(params: dict) -> dict:
  """Holds each layer's parameters in arrays of their own.

  Args:
    params: tree of a whole model; its stacks are taken out of it one by one,
      so that no more than one array is held twice.

  Returns:
    The tree with a list of L arrays for each array of a stack, each split over
    the mesh as the stack was.
  """
  flat = trees.flatten(params)
  params.clear()
  return trees.unflatten(
    {
      name: jax.tree.map(_unstack, flat.pop(name))
      if trees.is_stacked(name)
      else flat[name]
      for name in list(flat)
    }
  )


def _unstack(x: jax.Array) -> list[jax.Array]:
  split = None
  if isinstance(getattr(x, "sharding", None), NamedSharding):
    split = NamedSharding(x.sharding.mesh, P(*x.sharding.spec[1:]))
  return list(jax.jit(jnp.unstack, out_shardings=split)(x))

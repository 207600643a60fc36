"""How a policy holds its parameters: what it restores, and lays out anew."""

import jax
from jax.sharding import Mesh

from rt2_jax import parameters, trees
from rt2_jax.models import layers
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
  apart = mesh.devices.flat[0].platform in _LAYERS_APART
  return layers.apart(params) if apart else params

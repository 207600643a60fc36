"""What the TPU's compiler is told beside a program; see docs/step_time.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from jax.sharding import Mesh

# Products with one robot's single token would run on the vector unit, at less
# than half of the speed.
ACTING = MappingProxyType({"xla_tpu_enable_dot_strength_reduction": False})

# Where a chip has many rows, products and gathers of weights would be cut into
# pieces that take turns: the pieces take three times as long as the whole. This
# many MiB are never reached.
TRAINING = MappingProxyType(
  {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
)


def options_for(mesh: Mesh, options: Mapping[str, bool | str]) -> dict:
  """The options where the mesh is one of TPUs; other compilers know none."""
  on_tpu = mesh.devices.flat[0].platform == "tpu"
  return dict(options) if on_tpu else {}

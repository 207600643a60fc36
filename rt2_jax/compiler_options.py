"""What a compiler is told beside a program, by platform.

See docs/step_time.md. GPUs are told nothing: docs/one_gpu.md says what was
tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from jax.sharding import Mesh

Options = Mapping[str, Mapping[str, bool | str]]

ACTING: Options = MappingProxyType(
  {
    # Products with one robot's single token would run on the vector unit, at
    # less than half of the speed.
    "tpu": {"xla_tpu_enable_dot_strength_reduction": False},
  }
)

TRAINING: Options = MappingProxyType(
  {
    # Where a chip has many rows, products and gathers of weights would be cut
    # into pieces that take turns: the pieces take three times as long as the
    # whole. This many MiB are never reached.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
  }
)


def options_for(mesh: Mesh, options: Options) -> dict[str, bool | str]:
  """Returns the options of the mesh's platform; other compilers know none."""
  return dict(options.get(mesh.devices.flat[0].platform, {}))

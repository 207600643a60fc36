"""Compiles programs for an H100 that need not be here.

XLA compiles for a GPU by its description. It needs CUDA's libraries
(`pip install jax[cuda12]`), and neither a GPU nor a driver. Memory is what the
compiler plans; it predicts no times.
"""

from __future__ import annotations

import jax
from jax.experimental import topologies

from rt2_jax.errors import UserError

# XLA's `GpuTargetConfigProto`, of NVIDIA's data sheet and CUDA's tables.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  clock_rate_ghz: 1.98
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Triton's products try their tiles on the GPU; cuBLAS chooses by itself.
_OPTIONS = {"xla_gpu_enable_triton_gemm": False}


def h100() -> jax.Device:
  """Describes an H100 with 80 GB.

  Raises:
    UserError: JAX has no compiler for CUDA here.
  """
  try:
    topology = topologies.get_topology_desc(
      "H100", "cuda", target_config=_H100, topology="1x1x1"
    )
  except NotImplementedError as error:
    raise UserError(
      "got a JAX without CUDA, expected its compiler; run "
      "`pip install jax[cuda12]` (no GPU is needed)"
    ) from error
  (device,) = topology.devices
  return device


def compile_for_h100(program: jax.stages.Lowered) -> jax.stages.Compiled:
  """Compiles a program that was lowered for `h100()`."""
  return program.compile(compiler_options=_OPTIONS)

"""Prepares this process for the devices that JAX will compute on.

With `libtpu` installed, for `launch/estimate.py`, JAX loads it in every
program. On a machine without a TPU it then writes its own error lines to stderr
before JAX goes on with the CPU.
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import pkgutil

import jax

from rt2_jax.cpu_memory import keep_freed_memory

# Read by JAX when it starts: of a GPU's memory, what it reserves.
_GPU_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"

# What JAX, libtpu and TensorFlow set themselves, on any machine.
_SET_BY_LIBRARIES = (
  *("TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH"),
  *("TPU_ML_PLATFORM", "TPU_ML_PLATFORM_VERSION"),
)


def prepare():
  """Leaves an absent TPU out, and keeps freed memory where a CPU computes.

  To be called before the first computation: JAX starts its threads with that.
  Changes no platform where JAX has found a TPU, where the user has chosen
  platforms (`JAX_PLATFORMS`), or where a device or a variable hints at a TPU
  that JAX has not found.
  """
  if jax.config.jax_platforms is None and not _tpu_is_hinted_at():
    platforms = _without_tpu()
    if platforms is not None:
      jax.config.update("jax_platforms", platforms)
  if jax.config.jax_platforms == "cpu":
    keep_freed_memory()


def reserve_most_of_a_gpu():
  """Lets this process have 93% of a GPU's memory instead of JAX's 75%.

  To be called before JAX starts. What the user has set stays as it is.
  """
  os.environ.setdefault(_GPU_SHARE, "0.93")


def _without_tpu() -> str | None:
  """JAX's own order without the TPU; None where another plugin has its say."""
  plugins = _plugins()
  if any("cuda" not in name for name in plugins):
    return None
  has_gpu = glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg")
  return "cuda,cpu" if plugins and has_gpu else "cpu"


def _tpu_is_hinted_at() -> bool:
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  variables = [
    name
    for name in os.environ
    if name.startswith(("TPU_", "PJRT_", "JAX_FORCE_TPU"))
    and name not in _SET_BY_LIBRARIES
  ]
  return bool(devices or variables)


def _plugins() -> set[str]:
  """Names of the installed modules for GPUs and others, e.g. "xla_cuda12"."""
  entries = importlib.metadata.entry_points(group="jax_plugins")
  names = {entry.name for entry in entries}
  found = importlib.util.find_spec("jax_plugins")
  if found is not None:
    folders = found.submodule_search_locations
    names |= {module.name for module in pkgutil.iter_modules(folders)}
  return names

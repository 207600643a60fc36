"""Which of JAX's platforms a program tries: no TPU where none is attached.

With `libtpu` installed, for `launch/plan.py`, JAX loads it in every program. On
a machine without a TPU it then writes its own error lines to stderr before JAX
goes on with the CPU.
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import pkgutil

import jax

# What JAX and libtpu set themselves, on any machine.
_SET_BY_JAX = ("TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH")


def skip_absent_tpu():
  """Leaves the TPU out of JAX's platforms where there is none.

  To be called before the first computation. Changes nothing where JAX has found
  a TPU, where the user has chosen platforms (`JAX_PLATFORMS`), or where a
  device or a variable hints at a TPU that JAX has not found.
  """
  if jax.config.jax_platforms is not None or _tpu_is_hinted_at():
    return
  plugins = _plugins()
  if not plugins:
    jax.config.update("jax_platforms", "cpu")
  elif all("cuda" in name for name in plugins):
    jax.config.update("jax_platforms", "cuda,cpu")


def _tpu_is_hinted_at() -> bool:
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  variables = [
    name
    for name in os.environ
    if name.startswith(("TPU_", "PJRT_", "JAX_FORCE_TPU"))
    and name not in _SET_BY_JAX
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

"""JAX does not load libtpu where no TPU is, and finds one where it may be."""

import fnmatch
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rt2_jax import platforms
from tests.conftest import ROOT

STARTS_JAX = """
from rt2_jax import platforms
import {package}
platforms.prepare()
import jax
assert jax.devices()
print("libtpu.so" in open("/proc/self/maps").read())
"""


@pytest.mark.parametrize("package", ["rt2_jax.training", "tensorflow"])
def test_libtpu_is_not_loaded_without_a_tpu(package):
  """Whatever variables a package sets itself: TensorFlow does, too."""
  assert importlib.util.find_spec("libtpu")  # of the extra "plan"
  env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  done = subprocess.run(
    [sys.executable, "-c", STARTS_JAX.format(package=package)],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.stdout == "False\n"
  assert not done.stderr or package == "tensorflow"  # which warns


@pytest.mark.parametrize(
  ("chosen", "plugins", "variables", "devices", "expected"),
  [
    (None, set(), {}, [], "cpu"),
    (None, {"xla_cuda12"}, {}, ["/dev/nvidia0"], "cuda,cpu"),
    (None, {"xla_cuda12"}, {}, [], "cpu"),
    (None, set(), {}, ["/dev/nvidia0"], "cpu"),  # no plugin for it
    (None, {"xla_rocm7"}, {}, [], None),  # JAX's own order
    ("tpu,cpu", set(), {}, [], "tpu,cpu"),  # JAX has found a TPU
    ("", set(), {}, [], ""),  # the user wants JAX's own order
    (None, set(), {"TPU_NAME": "slice"}, [], None),
    (None, set(), {"TPU_WORKER_ID": "0"}, [], None),
    (None, set(), {"TPU_SKIP_MDS_QUERY": "1"}, [], "cpu"),  # JAX sets it
    (None, set(), {}, ["/dev/accel0"], None),
    (None, set(), {}, ["/dev/vfio/0"], None),
  ],
)
def test_a_tpu_that_may_be_there_is_tried(
  monkeypatch, chosen, plugins, variables, devices, expected
):
  config = SimpleNamespace(jax_platforms=chosen)
  config.update = lambda name, value: setattr(config, name, value)
  monkeypatch.setattr(platforms.jax, "config", config)
  monkeypatch.setattr(platforms, "_plugins", lambda: plugins)
  kept = []
  monkeypatch.setattr(platforms, "keep_freed_memory", lambda: kept.append(1))
  monkeypatch.setattr(
    platforms.glob,
    "glob",
    lambda pattern: fnmatch.filter(devices, pattern),
  )
  for name in [n for n in os.environ if n.startswith(("TPU_", "PJRT_"))]:
    monkeypatch.delenv(name)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  platforms.prepare()
  assert config.jax_platforms == expected
  assert len(kept) == (expected == "cpu")


@pytest.mark.parametrize(
  ("chosen", "expected"), [(None, "0.93"), ("0.5", "0.5")]
)
def test_a_training_has_a_gpu_to_itself_unless_told_otherwise(
  monkeypatch, chosen, expected
):
  name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
  monkeypatch.delenv(name, raising=False)
  if chosen:
    monkeypatch.setenv(name, chosen)
  platforms.reserve_most_of_a_gpu()
  assert os.environ[name] == expected
  monkeypatch.delenv(name)

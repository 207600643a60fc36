"""What a CPU step frees is taken again without the kernel's help."""

import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Computations in JAX's own threads, whose temporary arrays have 256 MB.
STEPS = """
import resource, sys
import jax, jax.numpy as jnp
from rt2_jax import platforms
if sys.argv[1] == "kept":
  platforms.prepare()

@jax.jit
def step(x):
  return jnp.tanh(x @ jnp.ones((4, 16384))) @ jnp.full((16384, 4), 1 / 16384)

x = jnp.ones((4096, 4))
faults = [0]
for _ in range(12):
  x = step(x).block_until_ready()
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(min(b - a for a, b in zip(faults, faults[1:])))
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="others give memory back"
)
def test_a_step_takes_no_pages_from_the_kernel_again():
  """By page faults, whose number no load of the machine changes.

  The least of some steps: which of the freed arrays fits depends on threads.
  """
  faults = {}
  for mode in ("kept", "as it is"):
    done = subprocess.run(
      [sys.executable, "-c", STEPS, mode],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    faults[mode] = int(done.stdout)
  assert faults["as it is"] > 50_000
  assert faults["kept"] < 1_000

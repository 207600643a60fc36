"""Measures time, memory and the matrix products of this machine."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import psutil

from rt2_jax.speed import peak_bytes

_REPEATS = 10
_MATMUL = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # rows of a square matrix


def machine() -> str:
  """Names the processor, the number of CPUs and the device."""
  device = jax.devices()[0]
  return f"{platform.machine()}, {os.cpu_count()} CPUs, {device.device_kind}"


def seconds(
  call: Callable[[], object],
  repeats: int = _REPEATS,
  clock: Callable[[], float] = time.perf_counter,
) -> float:
  """Takes the median time of a call, after two to warm up."""
  times = []
  for _ in range(repeats + 2):
    start = clock()
    call()
    times.append(clock() - start)
  return statistics.median(times[2:])


def percentiles(times: Sequence[float]) -> dict[str, float]:
  """Summarizes times as p50, p95 and p99, in their unit."""
  found = np.percentile(np.asarray(times), (50, 95, 99))
  names = ("p50", "p95", "p99")
  return dict(zip(names, found.round(3).tolist(), strict=True))


def cpu_seconds() -> float:
  """Reads the CPU time of this process and of those that it has waited for.

  An index of more than 256 MB is built by processes of its own.
  """
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def matmul_flops(dtype: str, repeats: int = _REPEATS) -> float:
  """Measures the FLOP/s of one device on a large product of random matrices."""
  size = _MATMUL[jax.default_backend()]
  draw = jax.jit(lambda key: jax.random.normal(key, (size, size), dtype))
  x = draw(jax.random.key(0))
  product = jax.jit(lambda x: x @ x)
  return 2 * size**3 / seconds(lambda: product(x).block_until_ready(), repeats)


def peak_memory() -> float:
  """Reads the peak bytes of the fullest device; of this process on a CPU."""
  resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak_bytes() or resident


def resident_mb() -> float:
  """Reads the memory of this process."""
  return psutil.Process().memory_info().rss / 2**20

"""Measures the loader: batches of a config's sources, decoded on the host."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from rt2_jax import images, sharding, train_data
from rt2_jax.benchmarks import meters
from rt2_jax.input_pipeline import sources
from rt2_jax.input_pipeline.loader import Loader
from rt2_jax.input_pipeline.mixture import by_source
from rt2_jax.train_config import TrainConfig

_SETTLING_BATCHES = 300  # until the allocator has met every thread
_HOST_RESIZE = 224  # pixels


def measure(
  config: TrainConfig, num_batches: int, soak_batches: int
) -> dict[str, Any]:
  """Reads the config's sources on one host.

  Args:
    config: its first robot source is the one that is timed by stages.
    num_batches: timed ones.
    soak_batches: over which memory may not grow.
  """
  first = next(iter(config.sources.values()))
  index_s = meters.seconds(
    lambda: sources.open_source(first, first.split), clock=meters.cpu_seconds
  )
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  batches = train_data.make_loader(config, config.action_tokenizers(), mesh)
  robot = batches.examples[0]
  rows = len(batches.rows)
  start = time.process_time()
  iterator = batches.batches(0, 10**9)
  next(iterator)
  first_batch_s = time.process_time() - start
  cpu_s, wall_s = throughput(iterator, num_batches)
  for _ in range(_SETTLING_BATCHES):
    next(iterator)
  before = meters.resident_mb()
  for _ in range(soak_batches):
    next(iterator)
  grown = meters.resident_mb() - before
  iterator.close()
  robot.largest_image = (0, 0)  # as web images do: resized on the host
  resized = Loader(
    batches.examples,
    batches.mixture,
    rows,
    batches.rows,
    _HOST_RESIZE,
    batches.num_images,
  )
  resized_cpu_s, _ = throughput(resized.batches(0, 10**9), num_batches)
  kilobytes = robot.source.index.length.mean() / 1000
  return {
    "image": "{}x{} canvas, ".format(*batches.canvas) + f"{kilobytes:.1f} kB",
    "batch_size": rows,
    "steps": len(robot),
    "index_steps_per_cpu_s": round(len(robot) / index_s),
    "first_batch_cpu_s": round(first_batch_s, 2),
    "examples_per_cpu_s": round(rows / cpu_s),
    "examples_per_s": round(rows / wall_s),
    "examples_per_cpu_s_resized_on_host": round(rows / resized_cpu_s),
    "ms_per_example": {**stages(robot), "tokens": python_ms(batches)},
    "peak_rss_mb": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ),
    f"rss_growth_mb_over_{soak_batches}_batches": round(grown, 1),
  }


def throughput(iterator: Iterator, num_batches: int) -> tuple[float, float]:
  """Measures CPU and wall seconds per batch, after a warm-up."""
  for _ in range(8):
    next(iterator)
  cpu, wall = time.process_time(), time.perf_counter()
  for _ in range(num_batches):
    next(iterator)
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return cpu / num_batches, wall / num_batches


def python_ms(batches: Loader, num_batches: int = 20) -> float:
  """Milliseconds per example of drawing and writing; files are read before."""

  def parts(step: int) -> Iterator[tuple]:
    drawn = batches.draw(step)
    for s, mine in by_source(drawn.source):
      yield batches.examples[s], drawn.example[mine], drawn.epoch[mine]

  def read(examples, numbers) -> list[list[bytes]]:
    return list(map(examples.storage.read, examples.requests(numbers)))

  steps = range(num_batches)
  known = {s: [read(e, numbers) for e, numbers, _ in parts(s)] for s in steps}

  def write():
    for step in steps:
      pairs = zip(parts(step), known[step], strict=True)
      for (examples, numbers, epochs), data in pairs:
        examples.requests(numbers)
        examples.rows(numbers, epochs, data)

  seconds = meters.seconds(write, 3, clock=meters.cpu_seconds)
  return round(1e3 * seconds / num_batches / len(batches.rows), 4)


def stages(robot) -> dict[str, float]:
  """Milliseconds per example of each stage, in one thread, run alone."""
  numbers = range(min(640, len(robot)))
  requests = robot.requests(numbers)
  data = [robot.storage.read(request) for request in requests]
  pixels = images.decode(data[0][0])

  def each(call: Callable[[int], object]) -> float:
    return (
      1e3 * meters.seconds(lambda: [call(i) for i in numbers], 3) / len(numbers)
    )

  milliseconds = {
    "read": each(lambda i: robot.storage.read(requests[i])),
    "decode": each(lambda i: images.decode(data[i][0])),
    "resize_on_host": each(lambda i: images.resize(pixels, _HOST_RESIZE)),
  }
  return {name: round(value, 3) for name, value in milliseconds.items()}

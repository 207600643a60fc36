"""Measures this machine and prints one JSON object per line.

  python launch/benchmark.py [loader|train|policy …]     (default: all three)

loader: read the sources of --config, in examples per second of this process's
  CPU time, decoding on the host (`make bench` renders episodes for it).
train: the training step of configs/quickstart.py on a synthetic batch.
policy: one action of the same model, from image to float32[8].

Speeds are medians. `train` and `policy` import no TensorFlow.
"""

import json
import os
import platform
import resource
import runpy
import statistics
import time
from collections.abc import Callable, Iterator

import absl.logging
import jax
import numpy as np
import psutil
from absl import app, flags

from rt2_jax import optimizer, sharding
from rt2_jax.actions import RT2, ActionTokenizer
from rt2_jax.augment import Augmentation
from rt2_jax.batch import Batch
from rt2_jax.models import variants
from rt2_jax.models.vlm import init_params
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.train_state import Trainer

_CONFIG = flags.DEFINE_string(
  "config", "configs/quickstart.py", "The sources that `loader` reads."
)
_DATA = flags.DEFINE_string(
  "data", None, "Instead of the path of the config's first robot source."
)
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", "data/small_tokenizer.model", "SentencePiece model."
)
_IMG = flags.DEFINE_string("img", "tiny/16", "Encoder of train and policy.")
_LLM = flags.DEFINE_string("llm", "gemma_tiny", "Decoder of train and policy.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Encoder pixels.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 48, "Examples per step.")
_BATCHES = flags.DEFINE_integer("batches", 60, "Timed batches of `loader`.")
_SOAK_BATCHES = flags.DEFINE_integer(
  "soak_batches", 500, "Batches over which memory may not grow."
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed calls.")

_SETTLING_BATCHES = 300  # until the allocator has met every thread
_HOST_RESIZE = 224  # pixels
_CAMERA = (256, 320)  # RT-1's
_PREFIX, _SUFFIX = 24, 9


def main(argv):
  absl.logging.set_verbosity(absl.logging.WARNING)
  benchmarks = {"loader": loader, "train": train, "policy": policy}
  unknown = set(argv[1:]) - set(benchmarks)
  if unknown:
    raise app.UsageError(f"got {unknown}, expected any of {list(benchmarks)}")
  for name in argv[1:] or benchmarks:
    row = {"benchmark": name, "machine": machine()} | benchmarks[name]()
    print(json.dumps(row), flush=True)


def machine() -> str:
  device = jax.devices()[0]
  return f"{platform.machine()}, {os.cpu_count()} CPUs, {device.device_kind}"


def loader() -> dict:
  # Here alone: the other two benchmarks run on machines without TensorFlow.
  from rt2_jax import training
  from rt2_jax.input_pipeline import datasets
  from rt2_jax.input_pipeline.loader import Loader
  from rt2_jax.train_config import TrainConfig

  fields = runpy.run_path(_CONFIG.value)["get_config"]().to_dict()
  if _DATA.value:
    next(iter(fields["sources"].values()))["path"] = _DATA.value
  config = TrainConfig.from_dict(fields)
  first = next(iter(config.sources.values()))
  index_s = seconds(
    lambda: datasets.open_source(first, first.split), clock=time.process_time
  )
  one = dict.fromkeys(sharding.MESH_AXES, 1)
  mesh = sharding.make_mesh(one, jax.devices()[:1])
  batches = training.make_loader(config, config.action_tokenizers(), mesh)
  robot = batches.examples[0]
  rows = len(batches.rows)
  start = time.process_time()
  iterator = batches.batches(0, 10**9)
  next(iterator)
  first_batch_s = time.process_time() - start
  cpu_s, wall_s = throughput(iterator)
  for _ in range(_SETTLING_BATCHES):
    next(iterator)
  before = resident_mb()
  for _ in range(_SOAK_BATCHES.value):
    next(iterator)
  grown = resident_mb() - before
  iterator.close()
  robot.shrinks = True  # as web images do: made smaller on the host
  resized = Loader(
    batches.examples, batches.mixture, rows, batches.rows, _HOST_RESIZE
  )
  resized_cpu_s, _ = throughput(resized.batches(0, 10**9))
  kilobytes = robot.source.index.length.mean() / 1000
  return {
    "config": _CONFIG.value,
    "image": "{}x{} canvas, ".format(*batches.canvas) + f"{kilobytes:.1f} kB",
    "batch_size": rows,
    "steps": len(robot),
    "index_steps_per_cpu_s": round(len(robot) / index_s),
    "first_batch_cpu_s": round(first_batch_s, 2),
    "examples_per_cpu_s": round(rows / cpu_s),
    "examples_per_s": round(rows / wall_s),
    "examples_per_cpu_s_resized_on_host": round(rows / resized_cpu_s),
    "ms_per_example": stages(robot),
    "peak_rss_mb": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ),
    f"rss_growth_mb_over_{_SOAK_BATCHES.value}_batches": round(grown, 1),
  }


def throughput(iterator: Iterator) -> tuple[float, float]:
  """CPU and wall seconds per batch, once the pipeline runs evenly."""
  for _ in range(8):
    next(iterator)
  cpu, wall = time.process_time(), time.perf_counter()
  for _ in range(_BATCHES.value):
    next(iterator)
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return cpu / _BATCHES.value, wall / _BATCHES.value


def stages(robot) -> dict[str, float]:
  """Milliseconds per example of each stage, in one thread, run alone."""
  from rt2_jax.input_pipeline.loader import decode_image, place

  numbers = range(min(640, len(robot)))
  requests = [robot.requests(i) for i in numbers]
  data = [robot.storage.read(request) for request in requests]
  pixels = decode_image(data[0][0], "")

  def each(call: Callable[[int], object]) -> float:
    return 1e3 * seconds(lambda: [call(i) for i in numbers], 3) / len(numbers)

  milliseconds = {
    "read": each(lambda i: robot.storage.read(requests[i])),
    "tokens": each(lambda i: robot.row(i, 0, data[i])),
    "decode": each(lambda i: decode_image(data[i][0], "")),
    "resize_on_host": each(lambda i: place(pixels, _HOST_RESIZE, _HOST_RESIZE)),
  }
  return {name: round(value, 3) for name, value in milliseconds.items()}


def resident_mb() -> float:
  return psutil.Process().memory_info().rss / 2**20


def train() -> dict:
  tokenizer = Tokenizer.from_file(_TOKENIZER.value)
  actions = ActionTokenizer(RT2, tokenizer.action_route("rare"))
  config = optimizer.OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
  trainer = Trainer(
    model=make_model(tokenizer),
    optimizer=optimizer.make_optimizer(config, 100),
    augmentation=Augmentation(),
    tokenizers=(actions,),
    seed=0,
    mesh=sharding.make_mesh({"data": -1, "fsdp": 1, "model": 1}),
  )
  batch = synthetic_batch(actions, make_prompt(tokenizer))
  batch = sharding.to_devices(batch, trainer.mesh)
  state, step = trainer.init_state(), trainer.compile_step()

  def run():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)

  step_s = seconds(run)
  return {
    "model": f"{_IMG.value} + {_LLM.value}, {_DTYPE.value}",
    "parameters": optimizer.count_parameters(state.params),
    "batch_size": _BATCH_SIZE.value,
    "step_s": round(step_s, 4),
    "examples_per_s": round(_BATCH_SIZE.value / step_s, 1),
  }


def policy() -> dict:
  tokenizer = Tokenizer.from_file(_TOKENIZER.value)
  model = make_model(tokenizer)
  actor = Policy(
    model,
    jax.jit(lambda: init_params(model, jax.random.key(0)))(),
    make_prompt(tokenizer),
    ActionTokenizer(RT2, tokenizer.action_route("rare")),
  )
  image = np.zeros((*_CAMERA, 3), np.uint8)
  action_s = seconds(lambda: actor(image, "pick coke can"))
  return {
    "model": f"{_IMG.value} + {_LLM.value}, {_DTYPE.value}",
    "action_ms": round(1e3 * action_s, 2),
    "actions_per_s": round(1 / action_s, 1),
  }


def make_model(tokenizer: Tokenizer) -> variants.VLMConfig:
  return variants.vlm(
    _IMG.value,
    _LLM.value,
    image_size=_IMAGE_SIZE.value,
    vocab_size=tokenizer.vocab_size,
    dtype=_DTYPE.value,
  )


def make_prompt(tokenizer: Tokenizer) -> Prompt:
  return Prompt(tokenizer, _PREFIX, _SUFFIX)


def synthetic_batch(actions: ActionTokenizer, prompt: Prompt) -> Batch:
  """Random images and actions, fixed by a seed."""
  rng = np.random.default_rng(0)
  rows = _BATCH_SIZE.value
  bins = rng.integers(0, actions.sizes, (rows, len(actions.space)))
  suffixes = map(prompt.suffix, actions.encode(actions.to_action(bins)))
  suffix, mask_loss = map(np.stack, zip(*suffixes, strict=True))
  prefix, mask_input = prompt.robot_prefixes(["pick coke can"] * rows)
  image = rng.integers(0, 256, (rows, 1, *_CAMERA, 3), np.uint8)
  source = np.zeros(rows, np.int32)
  size = np.full((rows, 2), _CAMERA, np.int32)
  return Batch(image, size, prefix, mask_input, suffix, mask_loss, source)


def seconds(
  call: Callable[[], object],
  repeats: int | None = None,
  clock: Callable[[], float] = time.perf_counter,
) -> float:
  """Median time of a call, after two to warm up."""
  times = []
  for _ in range((repeats or _REPEATS.value) + 2):
    start = clock()
    call()
    times.append(clock() - start)
  return statistics.median(times[2:])


if __name__ == "__main__":
  app.run(main)

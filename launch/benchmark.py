"""Measures this machine and prints one JSON object per line.

  python launch/benchmark.py [loader|train|policy|tabletop …]   (default: all)

All but `tabletop` take --config (default: configs/rt1_debug.py).

loader: read the config's sources, in examples per second of this process's
  CPU time, decoding on the host (`make bench` renders episodes for it).
train: the config's training step on a synthetic batch. `mfu` is useful FLOP
  (see `tpu.train_step.useful_flops`) / (step_s * devices * matmul_flops), where
  matmul_flops is what one device reaches here on a large matrix product in the
  config's dtype. With --beside=torch also the same model, batch, loss and
  optimizer in PyTorch and transformers, in a process of its own, on as many
  threads: `taskset -c 0 python launch/benchmark.py train --beside=torch` for
  one. `ratio` is its CPU time to ours.
policy: one action of the same model, from image to float32[8].
tabletop: one simulated environment in a process of its own, driven by the
  scripted expert, in CPU time; a step holds the drawing of one image.

Speeds are medians. All but `loader` read no data; a tokenizer that is not here
is replaced by data/small_tokenizer.model, which changes words and not costs.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import absl.logging
import jax
import numpy as np
import psutil
from absl import app, flags

from rt2_jax import optimizer, platforms, sharding
from rt2_jax.actions import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.errors import ends_in_one_message
from rt2_jax.models.vlm import init_params
from rt2_jax.observation import from_images
from rt2_jax.policy import Policy
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.tpu import train_step
from rt2_jax.train_config import TrainConfig, config_hash
from rt2_jax.train_state import TrainState
from rt2_jax.weights import export

_CONFIG = flags.DEFINE_string(
  "config", "configs/rt1_debug.py", "One experiment; file.py or file.py:data."
)
_DATA = flags.DEFINE_string(
  "data", None, "Instead of the path of the config's first robot source."
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", None, "Instead of the config's, for `train`.", 1
)
_BATCHES = flags.DEFINE_integer("batches", 60, "Timed batches of `loader`.", 1)
_SOAK_BATCHES = flags.DEFINE_integer(
  "soak_batches", 500, "Batches over which memory may not grow.", 1
)
_BESIDE = flags.DEFINE_enum(
  "beside", None, ["torch"], "What else trains the model of `train`."
)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed calls.", 1)

_SETTLING_BATCHES = 300  # until the allocator has met every thread
_HOST_RESIZE = 224  # pixels
_CAMERA = (256, 320)  # RT-1's
_INSTRUCTION = "pick coke can"
_MATMUL = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # rows of a square matrix
_PICTURES = "data/pictures.zip"
_SMALL_TOKENIZER = "data/small_tokenizer.model"


@ends_in_one_message
def main(argv):
  platforms.prepare()
  absl.logging.set_verbosity(absl.logging.WARNING)
  benchmarks = {
    "loader": loader,
    "train": train,
    "policy": policy,
    "tabletop": tabletop,
  }
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
  # Here alone: a bare machine lacks the packages that read data.
  from rt2_jax import training
  from rt2_jax.input_pipeline.loader import Loader
  from rt2_jax.input_pipeline.sources import open_source

  fields = read_config()
  if _DATA.value:
    next(iter(fields["sources"].values()))["path"] = _DATA.value
  config = TrainConfig.from_dict(fields)
  first = next(iter(config.sources.values()))
  index_s = seconds(lambda: open_source(first, first.split), clock=cpu_seconds)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
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
  robot.largest_image = (0, 0)  # as web images do: resized on the host
  resized = Loader(
    batches.examples, batches.mixture, rows, batches.rows, _HOST_RESIZE
  )
  resized_cpu_s, _ = throughput(resized.batches(0, 10**9))
  kilobytes = robot.source.index.length.mean() / 1000
  return {
    **named(read_config()),  # wherever the data lie
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


def cpu_seconds() -> float:
  """CPU time of this process and of those that it has waited for.

  An index of more than 256 MB is built by processes of its own.
  """
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


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
  from rt2_jax import images

  numbers = range(min(640, len(robot)))
  requests = [robot.requests(i) for i in numbers]
  data = [robot.storage.read(request) for request in requests]
  pixels = images.decode(data[0][0])

  def each(call: Callable[[int], object]) -> float:
    return 1e3 * seconds(lambda: [call(i) for i in numbers], 3) / len(numbers)

  milliseconds = {
    "read": each(lambda i: robot.storage.read(requests[i])),
    "tokens": each(lambda i: robot.row(i, 0, data[i])),
    "decode": each(lambda i: images.decode(data[i][0])),
    "resize_on_host": each(lambda i: images.resize(pixels, _HOST_RESIZE)),
  }
  return {name: round(value, 3) for name, value in milliseconds.items()}


def resident_mb() -> float:
  return psutil.Process().memory_info().rss / 2**20


def read_config() -> dict:
  path, _, argument = _CONFIG.value.partition(":")
  get_config = runpy.run_path(path)["get_config"]
  return (get_config(argument) if argument else get_config()).to_dict()


def named(fields: dict) -> dict:
  """What was measured."""
  return {"config": _CONFIG.value, "config_hash": config_hash(fields)}


def train() -> dict:
  fields = read_config()
  if _BATCH_SIZE.value:
    fields["batch_size"] = _BATCH_SIZE.value
  if _BESIDE.value:
    # Images that both sides see alike, and one update that both know.
    fields["augmentation"] = {}
    fields["optimizer"] |= {"name": "adamw", "warmup_steps": 0, "frozen": ()}
    fields["optimizer"] |= {"schedule": "constant", "weight_decay": 0.0}
  config = TrainConfig.from_dict(fields)
  mesh = config.make_mesh(jax.devices())
  sharding.check_batch(config.batch_size, mesh.shape, config.microbatches)
  prompt, tokenizers = make_words(config)
  trainer = config.make_trainer(tokenizers, mesh)
  rows = synthetic_batch(config, prompt, tokenizers)
  batch = sharding.same_rows_to_devices(rows, mesh)
  state, step = trainer.init_state(), trainer.compile_step()
  other = beside_torch(config, prompt, tokenizers, state, rows)
  losses, cpu = [], []

  def run():
    nonlocal state
    start = cpu_seconds()
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"].sum()) / config.batch_size)
    cpu.append(cpu_seconds() - start)

  step_s = seconds(run)
  step_cpu_s = statistics.median(cpu[2:])
  if other:
    other["ratio"] = round(other["step_cpu_s"] / step_cpu_s, 3)
    other["losses"], ours = other["losses"][:4], losses[:4]
  flops = matmul_flops(config.model.llm.dtype)
  useful = train_step.useful_flops(config)
  return {
    **named(fields),
    "parameters": optimizer.count_parameters(state.params),
    "dtype": config.model.llm.dtype,
    "mesh": "x".join(str(size) for size in mesh.shape.values()),
    "batch_size": config.batch_size,
    "step_s": round(step_s, 4),
    "step_cpu_s": round(step_cpu_s, 4),
    "examples_per_s": round(config.batch_size / step_s, 1),
    "useful_tflop": round(useful / 1e12, 4),
    "matmul_flops": float(f"{flops:.3g}"),
    "mfu": float(f"{useful / (step_s * mesh.size * flops):.3g}"),
    "peak_memory_gb": round(peak_memory() / 1e9, 2),
    **({"losses": ours, "torch": other} if other else {}),
  }


def beside_torch(
  config: TrainConfig,
  prompt: Prompt,
  tokenizers: dict[str, ActionTokenizer],
  state: TrainState,
  batch: Batch,
) -> dict:
  """What `pytorch.train_step` measures of the same start, with --beside.

  It has ended before our own step is timed: the two runtimes never share a
  process, nor the CPUs.
  """
  if not _BESIDE.value:
    return {}
  meta = CheckpointMeta(
    config={},
    model=config.model,
    prompt=dataclasses.asdict(config.prompt),
    action_tokenizers=tokenizers,
    observation=config.observation.spec,
    observations=config.observation_specs(),
    tokenizer_sha256=prompt.tokenizer.sha256,
  ).to_dict()
  settings = dataclasses.asdict(config.optimizer) | {"repeats": _REPEATS.value}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "model"
    export.to_huggingface(
      state.params, config.model, meta, prompt.tokenizer.model, folder
    )
    (folder / "settings.json").write_text(json.dumps(settings))
    np.savez(folder / "batch.npz", **batch._asdict())
    done = subprocess.run(
      [sys.executable, "-m", "rt2_jax.pytorch.train_step", str(folder)],
      stdout=subprocess.PIPE,
      check=True,
    )
  return json.loads(done.stdout)


def matmul_flops(dtype: str) -> float:
  """FLOP/s of one device on a large matrix product."""
  size = _MATMUL[jax.default_backend()]
  x = jax.jit(lambda: jax.numpy.ones((size, size), dtype))()
  product = jax.jit(lambda x: x @ x)
  return 2 * size**3 / seconds(lambda: product(x).block_until_ready())


def peak_memory() -> float:
  """Bytes: of the fullest device; of this process on a CPU."""
  peaks = [
    (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    for device in jax.local_devices()
  ]
  resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return max(peaks) or resident


def policy() -> dict:
  fields = read_config()
  config = TrainConfig.from_dict(fields)
  prompt, tokenizers = make_words(config)
  actor = Policy(
    config.model,
    jax.jit(lambda: init_params(config.model, jax.random.key(0)))(),
    prompt,
    next(iter(tokenizers.values())),
    config.observation.spec,
  )
  seen = from_images(
    np.zeros((1, config.model.num_images, *_CAMERA, 3), np.uint8),
    [_INSTRUCTION],
  )
  action_s = seconds(lambda: actor.token_ids(seen))
  return {
    **named(fields),
    "dtype": config.model.llm.dtype,
    "action_ms": round(1e3 * action_s, 2),
    "actions_per_s": round(1 / action_s, 1),
  }


def tabletop() -> dict:
  # The environment's libraries, and what they leave behind, stay outside.
  with concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn")
  ) as pool:
    return pool.submit(drive_tabletop, 5 * _REPEATS.value).result()


def drive_tabletop(episodes: int) -> dict:
  """CPU milliseconds of each part of the expert's episodes."""
  os.environ.setdefault("LP_NUM_THREADS", "1")  # one CPU draws
  from rt2_jax.envs.tabletop import pictures
  from rt2_jax.envs.tabletop.environment import TabletopEnv

  env = TabletopEnv(pictures.load(_PICTURES))
  clock = time.process_time
  reset_s, step_s = [], []
  for seed in range(episodes):
    start, over = clock(), False
    env.reset(seed=seed)
    reset_s.append(clock() - start)
    while not over:
      action = env.oracle_action()
      start = clock()
      _, _, terminated, truncated, _ = env.step(action)
      step_s.append(clock() - start)
      over = terminated or truncated
  render_s = seconds(env.render, 100, clock)
  size = env.config.image_size
  return {
    "image": f"{size}x{size}",
    "reset_cpu_ms": round(1e3 * statistics.median(reset_s), 2),
    "step_cpu_ms": round(1e3 * statistics.median(step_s), 2),
    "render_cpu_ms": round(1e3 * render_s, 2),
    "steps_per_episode": round(len(step_s) / episodes, 1),
    "steps_per_cpu_s": round(len(step_s) / sum(step_s)),
    "episodes_per_cpu_s": round(episodes / (sum(reset_s) + sum(step_s)), 1),
  }


def make_words(
  config: TrainConfig,
) -> tuple[Prompt, dict[str, ActionTokenizer]]:
  """The config's prompt and action tokenizers, or a stand-in's."""
  file = config.tokenizer_file
  if not pathlib.Path(file).is_file():
    file = _SMALL_TOKENIZER
  tokenizer = Tokenizer.from_file(file)
  route = tokenizer.action_route(config.actions.route)
  return Prompt(tokenizer, **dataclasses.asdict(config.prompt)), {
    name: ActionTokenizer(source.space, route)
    for name, source in config.sources.items()
  }


def synthetic_batch(
  config: TrainConfig, prompt: Prompt, tokenizers: dict[str, ActionTokenizer]
) -> Batch:
  """Random images and actions, fixed by a seed."""
  rng = np.random.default_rng(0)
  rows = config.batch_size
  actions = tokenizers[next(iter(config.sources))]
  shape = rows, actions.horizon, len(actions.space)
  bins = rng.integers(0, actions.sizes, (rows, len(actions.sizes)))
  suffixes = [
    prompt.suffix(actions.encode_bins(b)) for b in bins.reshape(shape)
  ]
  suffix, mask_loss = map(np.stack, zip(*suffixes, strict=True))
  prefix, mask_input = prompt.prefixes(
    [prompt.robot_question(_INSTRUCTION)] * rows
  )
  count = config.model.num_images
  image = rng.integers(0, 256, (rows, count, *_CAMERA, 3), np.uint8)
  source = np.zeros(rows, np.int32)
  size = np.full((rows, count, 2), _CAMERA, np.int32)
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

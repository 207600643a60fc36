"""Measures one GPU and prints one JSON object per line.

  python launch/gpu_check.py | tee runs/gpu.jsonl      (or `make gpu-check`)
  python launch/gpu_check.py --parts=matmul,decode --tiny

Under 8 minutes on one GPU of 80 GB, with jax, flax, optax, orbax, torch,
transformers and peft; needs no TensorFlow, MuJoCo or ml_collections, and no
data or weights: parameters are random. Each part is a process of its own. What
fails is a line with its error, and the others go on.

matmul: FLOP/s of a large product in bfloat16, the peak of the MFU below.
agreement: a tiny model on the GPU and on the CPU: logits, gradients, actions.
lora, full_24, full_40, full_80: the training step of the one-GPU configs, with
  the memory that it took, that the compiler planned and that
  `memory_estimate` says.
decode: a 3B policy in bfloat16, from images on the host to actions.
decode_int8: the same with matrices of 8 bits, where qwix is installed.
torch: the same policy and training steps in PyTorch and transformers.
mini: a small model that learns synthetic actions; its loss, and how far its
  actions are from what the pictures show.

--tiny does all of it with small models, to try the program itself on a CPU.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

_PARTS = flags.DEFINE_list("parts", None, "Names from above; default: all.")
_PART = flags.DEFINE_string("part", None, "One part, in this process.")
_TINY = flags.DEFINE_boolean("tiny", False, "Small models, see above.")
_SECONDS = flags.DEFINE_integer(
  "seconds", 450, "Parts that would start later than this are left out.", 1
)

_ROOT = pathlib.Path(__file__).parents[1]
_LIMIT_S = 120  # of a part
_REPEATS = 8
_MINI_S = 40
CONFIGS = {
  "lora": "configs/rt2_paligemma_3b_lora.py",
  "full_24": "configs/rt2_paligemma_3b_one_gpu.py:24",
  "full_40": "configs/rt2_paligemma_3b_one_gpu.py:40",
  "full_80": "configs/rt2_paligemma_3b_one_gpu.py:80",
}
_SMALL = {"img": "tiny/16", "llm": "gemma_tiny", "image_size": 64}
_SMALL |= {"vocab_size": 3200}


def main(argv):
  # No `launch.program`: on a bare machine this process finds no package.
  if len(argv) > 1:
    raise app.UsageError(f"got {argv[1:]}, expected flags only")
  parts = all_parts()
  chosen = [_PART.value] if _PART.value else _PARTS.value or list(parts)
  if unknown := set(chosen) - set(parts):
    raise app.UsageError(f"got {unknown}, expected any of {list(parts)}")
  if _PART.value:
    check_gpu()
    parts[_PART.value]()
    return
  start = time.monotonic()
  for name in chosen:
    if time.monotonic() - start > _SECONDS.value:
      say(name, error=f"not started within {_SECONDS.value} s")
    else:
      run(name)


def all_parts() -> dict[str, Callable[[], None]]:
  """Lists the parts by name, in the order in which they run."""
  return {
    "matmul": matmul,
    "agreement": agreement,
    "decode": decode,
    "mini": mini,
    **{name: functools.partial(train, name) for name in CONFIGS},
    "torch": in_torch,
    "decode_int8": functools.partial(decode, int8=True),
  }


def check_gpu():
  """Ends a part on a CPU, where a model of 3B takes minutes for a step."""
  import jax

  found = jax.default_backend()
  if found == "cpu" and not _TINY.value:
    sys.exit(
      "got a JAX that sees no GPU, expected one: install jax[cuda12], or try "
      "this program with --tiny"
    )


def say(part: str, **facts: Any):
  print(json.dumps({"part": part} | facts), flush=True)


def run(name: str):
  """Runs a part in a process of its own, which prints its own lines."""
  start = time.monotonic()
  paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
  environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths).strip(":"))
  environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
  command = [sys.executable, __file__, f"--part={name}"]
  command += ["--tiny"] * _TINY.value
  with tempfile.TemporaryFile("w+", errors="replace") as log:
    try:
      subprocess.run(
        command,
        cwd=_ROOT,
        env=environment,
        stderr=log,
        timeout=_LIMIT_S,
        check=True,
      )
    except subprocess.TimeoutExpired:
      say(name, error=f"took longer than {_LIMIT_S} s")
    except subprocess.CalledProcessError as failure:
      log.seek(0)
      lines = log.read().strip().splitlines() or ["no message"]
      say(name, error=lines[-1][:500], exit_status=failure.returncode)
  say(name, seconds=round(time.monotonic() - start, 1))


def config_of(name: str, changes: dict[str, Any] | None = None):
  """Reads a config: its `TrainConfig`, and what names it."""
  from launch import config_file
  from rt2_jax.train_config import TrainConfig, config_hash

  fields = config_file.read(name) | (changes or {})
  named = {"config": name, "config_hash": config_hash(fields)}
  if _TINY.value:
    fields["model"] |= _SMALL
    fields["batch_size"] = 8
  return TrainConfig.from_dict(fields), named


def matmul():
  import jax

  from rt2_jax.benchmarks import meters
  from rt2_jax.tpu.peak_flops import PEAK_FLOPS

  device = jax.devices()[0]
  flops = meters.matmul_flops("bfloat16", 20)
  peak = PEAK_FLOPS.get(device.device_kind)
  say(
    "matmul",
    device=device.device_kind,
    memory_gb=round(device_bytes(device) / 1e9, 2),
    versions=versions(),
    tflops=round(flops / 1e12, 1),
    data_sheet_tflops=peak and peak / 1e12,
    of_data_sheet=peak and round(flops / peak, 3),
  )


def device_bytes(device) -> float:
  return (device.memory_stats() or {}).get("bytes_limit", 0)


def versions() -> dict[str, str]:
  import importlib.metadata

  names = ("jax", "flax", "optax", "torch", "transformers")
  return {name: importlib.metadata.version(name) for name in names}


def decode(int8: bool = False):
  import jax

  from rt2_jax.benchmarks import acting, meters

  config, named = config_of("configs/rt2_paligemma_3b_robot_only.py")
  policy = acting.random_policy(config)
  policy = policy.in_int8() if int8 else policy
  for robots in (1, 8):
    call_s = acting.action_seconds(policy, robots, 2 * _REPEATS)
    say(
      "decode_int8" if int8 else "decode",
      **named,
      device=jax.devices()[0].device_kind,
      dtype="int8" if int8 else config.model.llm.dtype,
      robots=robots,
      call_ms=round(1e3 * call_s, 2),
      hz=round(1 / call_s, 1),
      actions_per_s=round(robots / call_s, 1),
      peak_memory_gb=round(meters.peak_memory() / 1e9, 2),
    )


def train(part: str):
  import jax

  from rt2_jax.benchmarks import meters, synthetic, training
  from rt2_jax.gpu import memory_estimate
  from rt2_jax.tpu.peak_flops import PEAK_FLOPS

  config, named = config_of(CONFIGS[part])
  case = training.Case.of(config)
  shapes = case.trainer.abstract_state().params
  state = case.trainer.state_from(synthetic.params(shapes))
  steps = training.run(case, state, _REPEATS)
  flops = meters.matmul_flops("bfloat16")
  peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
  facts = training.facts(case, steps, flops)
  rate = facts["useful_tflop"] * 1e12 / steps.step_s
  say(
    part,
    **named,
    remat=config.model.llm.remat,
    device=jax.devices()[0].device_kind,
    **facts,
    mfu_of_data_sheet=peak and round(rate / peak, 3),
    compile_s=round(steps.compile_s, 1),
    planned_memory_gb=round(steps.planned_bytes / 1e9, 2),
    estimated_memory_gb=round(memory_estimate.of(config).total / 1e9, 2),
    losses=[round(loss, 4) for loss in steps.losses],
  )


def in_torch():
  import dataclasses

  import torch

  from rt2_jax.benchmarks import acting, synthetic
  from rt2_jax.pytorch import random_model, train_step
  from rt2_jax.pytorch.policy import TorchPolicy
  from rt2_jax.weights import hf_config

  device = "cuda" if torch.cuda.is_available() else "cpu"
  config, named = config_of("configs/rt2_paligemma_3b_robot_only.py")
  prompt, action_tokenizers = synthetic.words(config)
  fields = hf_config.to_config(config.model, "bfloat16")

  def policy_of(dtype):
    model = random_model.random_model(fields, device, dtype)
    actions = next(iter(action_tokenizers.values()))
    return TorchPolicy(model, prompt, actions, config.observation.spec)

  policy = policy_of("bfloat16")
  for robots in (1, 8):
    call_s = acting.action_seconds(policy, robots, _REPEATS)
    say(
      "torch",
      **named,
      program="decode",
      attention=policy.model.config._attn_implementation,
      robots=robots,
      call_ms=round(1e3 * call_s, 2),
      hz=round(1 / call_s, 1),
      actions_per_s=round(robots / call_s, 1),
    )
  del policy
  for part in ("lora", "full_80"):
    config, named = config_of(CONFIGS[part])
    policy = policy_of("bfloat16" if part == "lora" else "float32")
    if part == "lora":
      lora = config.model.llm.lora
      random_model.add_lora(policy.model, lora.rank, lora.alpha)
    random_model.checkpoint_layers(policy.model)
    batch = synthetic.batch(config, prompt, action_tokenizers)._asdict()
    settings = dataclasses.asdict(config.optimizer) | {"repeats": _REPEATS}
    cast = torch.bfloat16 if part == "full_80" else None
    if device == "cuda":
      torch.cuda.empty_cache()
      torch.cuda.reset_peak_memory_stats()
    found = train_step.train(policy, batch, settings, cast)
    say(
      "torch",
      **named,
      program=part,
      batch_size=config.batch_size,
      step_s=round(found["step_s"], 4),
      examples_per_s=round(config.batch_size / found["step_s"], 1),
      peak_memory_gb=round(found["peak_memory_gb"], 2),
      losses=[round(loss, 4) for loss in found["losses"]],
    )
    del policy, found


def agreement():
  import jax

  from rt2_jax.benchmarks import devices_agree

  config, named = config_of("configs/rt1_debug.py")
  found = devices_agree.compare(config, jax.devices("cpu")[0], jax.devices()[0])
  say("agreement", **named, device=jax.devices()[0].device_kind, **found)


def mini():
  import jax

  from rt2_jax.benchmarks import learning

  config, named = config_of(
    "configs/rt1_debug.py", {"batch_size": 64, "num_steps": 1500}
  )
  found = learning.learn(config, 5 if _TINY.value else _MINI_S)
  say("mini", **named, device=jax.devices()[0].device_kind, **found)


if __name__ == "__main__":
  app.run(main)

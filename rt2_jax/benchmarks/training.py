"""Measures a config's training step on a synthetic batch.

The step is the trainer's own, compiled before it is timed.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rt2_jax import optimizer, sharding
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.benchmarks import meters, synthetic
from rt2_jax.prompt import Prompt
from rt2_jax.tpu import train_step
from rt2_jax.tpu.ahead_of_time import planned_bytes
from rt2_jax.train_config import TrainConfig
from rt2_jax.train_state import Trainer, TrainState
from rt2_jax.weights import export


@dataclasses.dataclass(frozen=True)
class Case:
  """A config with all that its step takes.

  Attributes:
    config: one experiment.
    prompt: its own, or a stand-in's.
    action_tokenizers: likewise, by robot source.
    trainer: on all devices.
    rows: a synthetic batch, on the host.
  """

  config: TrainConfig
  prompt: Prompt
  action_tokenizers: Mapping[str, ActionTokenizer]
  trainer: Trainer
  rows: Batch

  @classmethod
  def of(cls, config: TrainConfig) -> Case:
    """
    Raises:
      UserError: the batch does not divide by the devices.
    """
    mesh = config.make_mesh(jax.devices())
    sharding.check_batch(config.batch_size, mesh.shape, config.microbatches)
    prompt, action_tokenizers = synthetic.words(config)
    trainer = config.make_trainer(action_tokenizers, mesh)
    rows = synthetic.batch(config, prompt, action_tokenizers)
    return cls(config, prompt, action_tokenizers, trainer, rows)


@dataclasses.dataclass(frozen=True)
class Steps:
  """What some steps on one batch took.

  Attributes:
    compile_s: seconds until the step was compiled.
    step_s: seconds of a step, median without the first two.
    step_cpu_s: likewise of CPU time.
    losses: of all steps.
    planned_bytes: memory that the compiler planned for the step.
    peak_bytes: memory that the fullest device had in use.
  """

  compile_s: float
  step_s: float
  step_cpu_s: float
  losses: list[float]
  planned_bytes: float
  peak_bytes: float


def run(case: Case, state: TrainState, repeats: int) -> Steps:
  """Takes steps on the case's batch; the state's memory is reused."""
  batch = sharding.same_rows_to_devices(case.rows, case.trainer.mesh)
  start = time.perf_counter()
  step = case.trainer.lower_step(batch).compile()
  compile_s = time.perf_counter() - start
  losses, wall, cpu = [], [], []
  for _ in range(repeats + 2):
    start = time.perf_counter(), meters.cpu_seconds()
    state, metrics = step(state, batch)
    # Waits for the step.
    losses.append(float(metrics["loss"].sum()) / case.config.batch_size)
    wall.append(time.perf_counter() - start[0])
    cpu.append(meters.cpu_seconds() - start[1])
  return Steps(
    compile_s,
    statistics.median(wall[2:]),
    statistics.median(cpu[2:]),
    losses,
    planned_bytes(step),
    meters.peak_memory(),
  )


def facts(case: Case, steps: Steps, flops: float) -> dict[str, Any]:
  """Puts what was measured into one JSON object.

  Args:
    case: what was measured.
    steps: from `run`.
    flops: FLOP/s of one device on a large matrix product.
  """
  config, devices = case.config, case.trainer.mesh.size
  useful = train_step.useful_flops(config)
  return {
    "parameters": optimizer.count_parameters(
      case.trainer.abstract_state().params
    ),
    "dtype": config.model.llm.dtype,
    "mesh": "x".join(map(str, case.trainer.mesh.shape.values())),
    "batch_size": config.batch_size,
    "step_s": round(steps.step_s, 4),
    "step_cpu_s": round(steps.step_cpu_s, 4),
    "examples_per_s": round(config.batch_size / steps.step_s, 1),
    "useful_tflop": round(useful / 1e12, 4),
    "matmul_flops": float(f"{flops:.3g}"),
    "mfu": float(f"{useful / (steps.step_s * devices * flops):.3g}"),
    "peak_memory_gb": round(steps.peak_bytes / 1e9, 2),
  }


def as_torch_knows_it(fields: dict[str, Any]) -> dict[str, Any]:
  """Images that both sides see alike, and one update that both know."""
  augmentation = dict.fromkeys(fields.get("augmentation", {}), 0.0)
  plain = {"name": "adamw", "warmup_steps": 0, "frozen": ()}
  plain |= {"schedule": "constant", "weight_decay": 0.0}
  return fields | {
    "augmentation": augmentation,
    "optimizer": fields["optimizer"] | plain,
  }


def in_torch(case: Case, state: TrainState, repeats: int) -> dict[str, Any]:
  """Measures the same start in PyTorch, see `pytorch.train_step`.

  That is a process of its own, and has ended before our step is timed: the two
  runtimes never share the CPUs.
  """
  config = case.config
  meta = synthetic.meta(config)
  settings = dataclasses.asdict(config.optimizer) | {"repeats": repeats}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "model"
    export.to_huggingface(
      state.params, config.model, meta, case.prompt.tokenizer.model, folder
    )
    (folder / "settings.json").write_text(json.dumps(settings))
    np.savez(folder / "batch.npz", **case.rows._asdict())
    done = subprocess.run(
      [sys.executable, "-m", "rt2_jax.pytorch.train_step", str(folder)],
      stdout=subprocess.PIPE,
      check=True,
    )
  return json.loads(done.stdout)

"""The training step in PyTorch and transformers, to compare speed with.

The same model, batch, loss and optimizer as `train_state.Trainer.train_step`.
Run in a process of its own, `python -m rt2_jax.pytorch.train_step FOLDER`:
FOLDER is what `export.to_huggingface` wrote, with the batch as `batch.npz` and
`settings.json` beside it. Prints one JSON object.

Shapes: B examples, S suffix columns, V vocabulary.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rt2_jax.pytorch.decode import vocab_size
from rt2_jax.pytorch.policy import TorchPolicy


def measure(folder: pathlib.Path) -> dict[str, Any]:
  """Trains some steps on one batch.

  Returns:
    parameters; losses of the steps; step_s and step_cpu_s, medians without the
    first two; and peak_memory_gb.
  """
  settings = json.loads((folder / "settings.json").read_text())
  batch = dict(np.load(folder / "batch.npz"))
  # As many as XLA takes: one for each CPU that this process may use.
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  policy = TorchPolicy.from_folder(folder)
  policy.model.requires_grad_(True)
  return {"parameters": count_parameters(policy)} | train(
    policy, batch, settings
  )


def train(
  policy: TorchPolicy,
  batch: Mapping[str, np.ndarray],
  settings: Mapping[str, Any],
  autocast: torch.dtype | None = None,
) -> dict[str, Any]:
  """Trains the parameters that require a gradient, on one batch.

  Args:
    policy: whose model trains.
    batch: fields of `batch.Batch`.
    settings: fields of `optimizer.OptimizerConfig`, and `repeats`.
    autocast: what products compute in, if not in the parameters' dtype.

  Returns:
    As `measure`, without parameters. Images are resized before the first step.
  """
  trained = [p for p in policy.model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(
    trained,
    lr=settings["learning_rate"],
    betas=(settings["b1"], settings["b2"]),
    weight_decay=settings["weight_decay"],
    fused=True,
  )
  device = policy.model.device
  inputs = prepared(policy, batch)
  losses, wall, cpu = [], [], []
  for _ in range(settings["repeats"] + 2):
    start = time.perf_counter(), cpu_seconds()
    optimizer.zero_grad()
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
      loss = answer_loss(policy, batch, inputs)
    loss.backward()
    clip = settings["clip_norm"] or float("inf")
    torch.nn.utils.clip_grad_norm_(trained, clip)
    optimizer.step()
    losses.append(loss.item())
    # `item` waits for the loss, not for the update.
    if device.type == "cuda":
      torch.cuda.synchronize()
    wall.append(time.perf_counter() - start[0])
    cpu.append(cpu_seconds() - start[1])
  return {
    "losses": losses,
    "step_s": statistics.median(wall[2:]),
    "step_cpu_s": statistics.median(cpu[2:]),
    "peak_memory_gb": peak_memory(device) / 1e9,
  }


def prepared(
  policy: TorchPolicy, batch: Mapping[str, np.ndarray]
) -> dict[str, torch.Tensor]:
  """Puts a batch into the words of transformers, its images resized."""
  image, size, suffix = batch["image"], batch["image_size"], batch["suffix"]
  text = batch["prefix"], batch["mask_input"], suffix[:, :-1]
  return {
    **policy.inputs(policy.shown(image, size), *text),
    "pixel_values": policy.prepare(image, len(image), size),
    "logits_to_keep": suffix.shape[1],
  }


def answer_loss(
  policy: TorchPolicy,
  batch: Mapping[str, np.ndarray],
  inputs: Mapping[str, torch.Tensor],
) -> torch.Tensor:
  """Computes the mean of `losses.answer_loss` over a batch, float32[].

  Args:
    policy: whose model is called.
    batch: fields of `batch.Batch`.
    inputs: from `prepared`.
  """
  device = policy.model.device
  suffix = torch.from_numpy(batch["suffix"]).long().to(device)
  mask_loss = torch.from_numpy(batch["mask_loss"]).to(device)
  logits = policy.model(**inputs).logits[..., : vocab_size(policy.model)]
  nll = torch.nn.functional.cross_entropy(
    logits.float().transpose(1, 2), suffix, reduction="none"
  )
  count = mask_loss.sum(-1).clamp(min=1.0)
  return ((nll * mask_loss).sum(-1) / count).mean()


def count_parameters(policy: TorchPolicy) -> int:
  """Counts without the token table's rows that are padding."""
  table = policy.model.get_input_embeddings().weight
  padding = (len(table) - vocab_size(policy.model)) * table.shape[1]
  return sum(p.numel() for p in policy.model.parameters()) - padding


def peak_memory(device: torch.device) -> float:
  """Reads the peak bytes of a GPU, or of this process."""
  if device.type == "cuda":
    return torch.cuda.max_memory_allocated(device)
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cpu_seconds() -> float:
  """Reads the user and system seconds of this process so far."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
  print(json.dumps(measure(pathlib.Path(sys.argv[1]))))

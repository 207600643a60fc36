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
  parameters = list(policy.model.parameters())
  optimizer = torch.optim.AdamW(
    parameters,
    lr=settings["learning_rate"],
    betas=(settings["b1"], settings["b2"]),
    weight_decay=settings["weight_decay"],
    fused=True,
  )
  losses, wall, cpu = [], [], []
  for _ in range(settings["repeats"] + 2):
    start = time.perf_counter(), cpu_seconds()
    optimizer.zero_grad()
    loss = answer_loss(policy, batch)
    loss.backward()
    clip = settings["clip_norm"] or float("inf")
    torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    losses.append(loss.item())
    wall.append(time.perf_counter() - start[0])
    cpu.append(cpu_seconds() - start[1])
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "parameters": count_parameters(policy),
    "losses": losses,
    "step_s": statistics.median(wall[2:]),
    "step_cpu_s": statistics.median(cpu[2:]),
    "peak_memory_gb": peak / 1e9,
  }


def answer_loss(
  policy: TorchPolicy, batch: Mapping[str, np.ndarray]
) -> torch.Tensor:
  """Computes the mean of `losses.answer_loss` over a batch, float32[]."""
  suffix = torch.from_numpy(batch["suffix"]).long()
  mask_loss = torch.from_numpy(batch["mask_loss"])
  image, size = batch["image"], batch["image_size"]
  inputs = policy.inputs(
    policy.shown(image, size),
    batch["prefix"],
    batch["mask_input"],
    batch["suffix"][:, :-1],
  )
  logits = policy.model(
    **inputs,
    pixel_values=policy.prepare(image, len(image), size),
    logits_to_keep=suffix.shape[1],
  ).logits[..., : vocab_size(policy.model)]
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


def cpu_seconds() -> float:
  """User and system seconds of this process so far."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
  print(json.dumps(measure(pathlib.Path(sys.argv[1]))))

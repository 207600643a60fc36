"""Writes and reads adapters in PEFT's format, as a folder.

PEFT loads the folder onto stock transformers' PaliGemma, whose matrices are
those of `hf_names`. It holds `lora_A` [rank, inputs] and `lora_B` [outputs,
rank] for each of them.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy

from rt2_jax import parameters, storage, trees
from rt2_jax.errors import UserError
from rt2_jax.models import lora
from rt2_jax.models.lora_config import LoraConfig
from rt2_jax.models.variants import VLMConfig
from rt2_jax.weights import hf_names
from rt2_jax.weights.files import open_shard, read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_INSIDE = "model."  # PaliGemma's own, before the names of the table
# Fields of PEFT that change what an adapter computes, as ours computes it.
_PLAIN: dict[str, tuple] = {
  "peft_type": ("LORA",),
  "bias": ("none", None),
  "use_rslora": (False, None),
  "use_dora": (False, None),
  "fan_in_fan_out": (False, None),
  "modules_to_save": (None, []),
  "rank_pattern": ({}, None),
  "alpha_pattern": ({}, None),
  # All others, such as "pissa", move the base that the adapters lie beside.
  "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
# What only names, training or the tensors' own names say. Any other field must
# be off: PEFT adds kinds of adapters with most releases.
_NO_MATTER = frozenset(
  (
    *("r", "lora_alpha", "lora_dropout", "task_type", "auto_mapping"),
    *("peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "target_parameters", "trainable_token_indices"),
    *("megatron_config", "megatron_core", "runtime_config", "eva_config"),
    *("loftq_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("ensure_weight_tying", "lora_bias"),
  )
)


def rules(config: VLMConfig) -> Iterator[hf_names.Rule]:
  """Yields a row of names and axes for every array of the adapters."""
  for rule in hf_names.rules(config):
    part = config.img if rule.ours.startswith("img/") else config.llm
    row = parameters.row(rule.ours)
    if not (row.muon and part.lora.adapts(rule.ours)):
      continue
    axes = rule.axes.split(" -> ")[0].split()
    inputs, outputs = (" ".join(axes[i] for i in side) for side in (row.matrix))
    modules = [name.removesuffix(".weight") for name in rule.theirs]
    yield hf_names.Rule(
      f"{rule.ours}{lora.SUFFIX}/a",
      tuple(f"{module}.lora_A.weight" for module in modules),
      f"{inputs} r -> r ({inputs})",
    )
    yield hf_names.Rule(
      f"{rule.ours}{lora.SUFFIX}/b",
      tuple(f"{module}.lora_B.weight" for module in modules),
      f"r {outputs} -> ({outputs}) r",
    )


def write(params: dict, config: VLMConfig, base: str, folder: pathlib.Path):
  """Writes a model's adapters as a folder for `peft.PeftModel`.

  Args:
    params: with adapters, or the adapters alone.
    config: the model with adapters.
    base: what PEFT is told to load them onto.
    folder: is created.
  """
  flat, size = trees.flatten(params), _one(config)
  tensors = {
    f"{_PREFIX}{_INSIDE}{name}": np.ascontiguousarray(tensor)
    for rule in rules(config)
    for name, tensor in rule.split(np.asarray(flat[rule.ours], np.float32))
  }
  modules = {
    name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in tensors
  }
  fields = {
    **{name: values[0] for name, values in _PLAIN.items()},
    "base_model_name_or_path": base,
    "r": size.rank,
    "lora_alpha": size.alpha,
    "lora_dropout": 0.0,
    "target_modules": sorted(modules),
    "inference_mode": True,
    "task_type": None,
  }
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(fields, indent=2) + "\n"
  (folder / CONFIG).write_text(text, encoding="utf-8")
  safetensors.numpy.save_file(tensors, folder / TENSORS, {"format": "pt"})
  # The library keeps them from all other users, who may read the rest.
  shutil.copymode(folder / CONFIG, folder / TENSORS)


def read(folder: storage.Path, params: dict, config: VLMConfig) -> dict:
  """Reads the adapters of a model from a folder of PEFT.

  Args:
    folder: with `CONFIG` and `TENSORS`.
    params: adapters, for their shapes.
    config: the model with adapters.

  Returns:
    float32 arrays of numpy, as a tree.

  Raises:
    UserError: a variant of LoRA that we do not have, another rank or alpha, or
      adapters of other matrices.
  """
  for name in (CONFIG, TENSORS):
    if not (folder / name).is_file():
      raise UserError(f"got no {folder / name}, expected a folder of PEFT")
  _check(folder / CONFIG, read_json(folder / CONFIG), _one(config))
  tensors = open_shard(folder / TENSORS)
  tensors = {
    hf_names.table_name(name.removeprefix(_PREFIX)): tensor.read()
    for name, tensor in tensors.items()
  }
  flat = trees.flatten(params)
  rows = [rule for rule in rules(config) if rule.ours in flat]
  shapes: dict[str, tuple[int, ...]] = {}
  for rule in rows:
    shapes |= rule.shapes(flat[rule.ours].shape)
  found = {name: tensor.shape for name, tensor in tensors.items()}
  other = sorted(
    name
    for name in shapes.keys() | found.keys()
    if shapes.get(name) != found.get(name)
  )
  if other:
    raise UserError(
      f"got {folder / TENSORS} with {other[0]} of shape {found.get(other[0])}, "
      f"expected {shapes.get(other[0])}; {len(other)} tensors differ from "
      "config.model.lora_targets and lora_rank"
    )
  return trees.unflatten(
    {
      rule.ours: rule.join(
        tensors.__getitem__, flat[rule.ours].shape, np.dtype(np.float32)
      )
      for rule in rows
    }
  )


def _check(path: storage.Path, fields: dict[str, Any], size: LoraConfig):
  for name, value in fields.items():
    plain = _PLAIN.get(name, (None,))
    off = name not in _PLAIN and (name in _NO_MATTER or not value)
    if not off and value not in plain:
      raise UserError(
        f"{path}: got {name} = {value!r}, expected {plain[0]!r}: only plain "
        "LoRA is read"
      )
  for name, expected in (("r", size.rank), ("lora_alpha", size.alpha)):
    if fields.get(name) != expected:
      raise UserError(
        f"{path}: got {name} = {fields.get(name)!r}, expected {expected} as in "
        "config.model"
      )


def _one(config: VLMConfig) -> LoraConfig:
  """Returns the adapters' size, which PEFT stores once for both parts."""
  assert config.img.lora == config.llm.lora, config
  return config.llm.lora

"""Loads the first and last layers of a model too large to run in PyTorch."""

from __future__ import annotations

import pathlib
import re

import torch
import transformers

from rt2_jax.weights import files, hf_names


def load(
  folder: pathlib.Path,
) -> transformers.PaliGemmaForConditionalGeneration:
  """Loads the first and last layers of the model in a folder, in float32."""
  config = transformers.AutoConfig.from_pretrained(folder)
  layers = {}
  for part, prefix in (
    (config.vision_config, "vision_tower.encoder.layers."),
    (config.text_config, "language_model.layers."),
  ):
    layers[f"{prefix}0."] = f"{prefix}0."
    layers[f"{prefix}{part.num_hidden_layers - 1}."] = f"{prefix}1."
    part.num_hidden_layers = 2
  if hasattr(config.text_config, "layer_types"):
    config.text_config.layer_types = config.text_config.layer_types[:2]
  model = transformers.PaliGemmaForConditionalGeneration(config).float()
  model.generation_config = transformers.GenerationConfig.from_pretrained(
    folder
  )
  state = dict(model.model.named_parameters())
  loaded = set()
  for stored, tensor in files.open_safetensors(folder).items():
    name = hf_names.table_name(stored)
    start = re.match(r".*\.layers\.\d+\.", name)
    if start:
      if start[0] not in layers:
        continue
      name = layers[start[0]] + name.removeprefix(start[0])
    with torch.no_grad():
      state[name].copy_(torch.from_numpy(tensor.read().astype("float32")))
    loaded.add(name)
  assert loaded == set(state), loaded ^ set(state)
  return model

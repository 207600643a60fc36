"""A PaliGemma with random parameters, drawn on the device it computes on.

To measure a size without its weights; with peft, LoRA as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

# Every matrix of the decoder's layers.
_DECODER = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


def random_model(
  fields: Mapping[str, Any], device: str, dtype: str
) -> transformers.PaliGemmaForConditionalGeneration:
  """Draws a model.

  Args:
    fields: of config.json, from `weights.hf_config.to_config`.
    device: such as "cuda".
    dtype: of the parameters.
  """
  config = transformers.PaliGemmaConfig.from_dict(dict(fields))
  before = torch.get_default_dtype()
  torch.set_default_dtype(getattr(torch, dtype))
  try:
    with torch.device(device):
      return transformers.PaliGemmaForConditionalGeneration(config)
  finally:
    torch.set_default_dtype(before)


def checkpoint_layers(model: transformers.PreTrainedModel):
  """Computes layers again going back, as `remat = "full"` does."""
  model.gradient_checkpointing_enable({"use_reentrant": False})
  model.train()  # in evaluation transformers keeps everything


def add_lora(
  model: transformers.PreTrainedModel, rank: int, alpha: float
) -> transformers.PreTrainedModel:
  """Freezes a model and adds float32 adapters to the decoder's matrices."""
  import peft  # the only user

  config = peft.LoraConfig(
    r=rank, lora_alpha=alpha, target_modules=_DECODER, lora_dropout=0.0
  )
  model = peft.inject_adapter_in_model(config, model.requires_grad_(False))
  for name, parameter in model.named_parameters():
    if "lora_" in name:
      parameter.data = parameter.data.float()
      parameter.requires_grad_(True)
  return model

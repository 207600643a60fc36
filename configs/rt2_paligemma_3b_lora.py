"""`rt2_paligemma_3b` fine-tuned with LoRA on one robot's data, on one GPU.

Adapters of rank 16 beside every matrix of the decoder (19.6 M parameters) train
in float32; the base is frozen, in bfloat16.
"""

import ml_collections

from configs import rt2_paligemma_3b_robot_only


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b_robot_only.get_config(data)
  config.topology = "v5e:1x1"
  config.model.update(
    {"lora_rank": 16, "lora_alpha": 16.0, "lora_targets": ("llm/layers/",)}
  )
  config.sources = {"bridge": config.sources.bridge}
  config.optimizer.update(
    {
      "learning_rate": 2e-4,
      "warmup_steps": 200,
      "trained": ("_lora/",),
      "frozen_dtype": "bfloat16",
    }
  )
  config.batch_size = 16
  config.num_steps = 10_000
  return config

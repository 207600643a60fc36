"""`quickstart` with LoRA instead of full fine-tuning: docs/one_gpu.md compares.

Adapters of rank 32 beside every matrix of the encoder and the decoder; the mini
VLM is frozen but for its token table. The mini VLM has never met the 256 action
tokens, so that their vectors must be learnt. Both runs see the same batches.

  --config=configs/mini_lora.py:runs/quickstart
"""

import ml_collections

from configs import quickstart


def get_config(data: str = "runs/quickstart") -> ml_collections.ConfigDict:
  config = quickstart.get_config(data)
  config.model.lora_rank = 32
  config.model.lora_alpha = 32.0
  config.model.lora_targets = ("llm/layers/", "img/")
  config.optimizer.trained = ("_lora/", "llm/embedder")
  config.optimizer.learning_rate = 3e-3
  config.num_steps = 1_950
  config.checkpoint_every = 100
  return config

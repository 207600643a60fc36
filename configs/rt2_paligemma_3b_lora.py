"""`rt2_paligemma_3b` fine-tuned with LoRA on one robot's data, on one GPU.

Adapters of rank 16 beside every matrix of the decoder (19.6 M parameters) train
in float32; the base is frozen, in bfloat16. A checkpoint holds the adapters and
names the base: keep `config.pretrained` where it is, or merge
(`launch/convert.py merge`).

Needs 8.8 GB at batch 16, as XLA plans it for an H100. Its 10,000 steps show 50
episodes of 200 steps each 16 times. With `remat = "full"`, which computes more
twice, they would take 27 minutes there (measured with random weights: 0.160 s a
step, 8.3 GB). Other cards take longer in proportion to their speed
(estimated). With room for 14.8 GB, --config.model.remat=dots is faster; with
--config.microbatches=4 beside it, 8.5 GB are enough (estimated).
"""

import ml_collections

from configs import rt2_paligemma_3b_robot_only


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b_robot_only.get_config(data)
  config.topology = "v5e:1x1"
  config.model.update(
    {
      "lora_rank": 16,
      "lora_alpha": 16.0,
      "lora_targets": ("llm/layers/",),
      "remat": "ungated",
    }
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

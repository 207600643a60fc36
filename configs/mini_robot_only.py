"""Ablation: `mini_cofinetuned` fine-tuned on robot data alone.

It sees as many robot steps, in half as large batches.
"""

import ml_collections

from configs import mini_cofinetuned


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  config = mini_cofinetuned.get_config(data)
  config.web = {}
  config.robot_share = 1.0
  config.batch_size = 64
  return config

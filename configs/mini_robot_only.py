"""Ablation: `mini_cofinetuned` fine-tuned on robot data alone.

It sees as many robot steps, in half as large batches.

Fits on one chip, v5e:1x1, with 0.10 of 16.9 GB. A step there: 1.3 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import mini_cofinetuned


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  config = mini_cofinetuned.get_config(data)
  config.web = {}
  config.robot_share = 1.0
  config.batch_size = 64
  return config

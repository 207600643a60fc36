"""A robot in minutes: the committed mini VLM, briefly co-fine-tuned.

`make quickstart` writes a part of the data of `configs/mini_cofinetuned.py`,
trains for 300 steps instead of 4,000, and tries the robot on the tabletop.

Fits on one chip, v5e:1x1, with 0.75 of 16.9 GB. A step there: 4.8 ms,
compiler-predicted (launch/plan.py, fast mode).
"""

import ml_collections

from configs import mini_cofinetuned


def get_config(data: str = "runs/quickstart") -> ml_collections.ConfigDict:
  config = mini_cofinetuned.get_config(data)
  config.pretrained = "data/mini_vlm.npz"
  config.optimizer.warmup_steps = 20
  config.num_steps = 300
  config.log_every = 20
  config.evaluation.every = 0
  return config

"""A robot in minutes: the committed mini VLM, briefly co-fine-tuned.

`make quickstart` writes a small part of the data of `mini_cofinetuned`, with
one family of tasks, and trains for 1,300 steps of 48 examples instead of 5,000
of 96, three quarters of each of them on robot data.

Fits on one chip, v5e:1x1, with 0.07 of 16.9 GB. A step there: 1.1 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import mini_cofinetuned


def get_config(data: str = "runs/quickstart") -> ml_collections.ConfigDict:
  config = mini_cofinetuned.get_config(data)
  config.pretrained = "data/mini_vlm.npz"
  config.robot_share = 0.75
  # In the same time, small batches learn more of what only the web shows.
  config.batch_size = 48
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 20
  config.num_steps = 1_300
  config.log_every = 20
  config.evaluation.every = 0
  return config

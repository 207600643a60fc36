"""The mini robot, co-fine-tuned: half robot steps, half the web's questions.

The paper's "co-fine-tune" rows of table 6, in miniature: demonstrations show 53
things in one art style, the rest is known from the web alone.

Fits on one chip, v5e:1x1, with 0.17 of 16.9 GB. A step there: 2.5 ms,
compiler-predicted (launch/plan.py, fast mode).
"""

import ml_collections

from configs import mini_vlm


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  config = mini_vlm.get_config(data)
  config.pretrained = f"{data}/vlm"
  config.sources = {
    "tabletop": {
      "dataset": "tabletop",
      "path": f"{data}/robot/tabletop/1.0.0",
      "split": "train",
      "eval_split": "val",
      "weight": 1.0,
      "bounds": {},
      "filters": {"episodes": {}, "drop_noops": False},
    },
  }
  config.robot_share = 0.5
  config.optimizer.learning_rate = 1e-3
  config.num_steps = 4_000
  return config

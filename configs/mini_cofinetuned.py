"""The mini robot, co-fine-tuned: two robot steps for each question of the web.

The paper's "co-fine-tune" rows of table 6, in miniature: demonstrations show 53
things in one art style, the rest is known from the web alone. Two thirds are
the robot share of RT-2-PaLM-E; RT-2-PaLI-X has a half.

Fits on one chip, v5e:1x1, with 0.17 of 16.9 GB. A step there: 1.9 ms,
compiler-predicted (launch/estimate.py, fast mode).
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
      "eval_split": "val",
    },
  }
  config.robot_share = 2 / 3
  config.batch_size = 96
  # No crop, which would move what the hand is to go to.
  config.augmentation = {
    "brightness": 0.15,
    "contrast": 0.3,
    "saturation": 0.3,
  }
  config.evaluation.every = 2_500
  config.num_steps = 5_000
  return config

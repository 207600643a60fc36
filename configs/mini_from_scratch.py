"""Ablation: `mini_robot_only` without pretrained weights.

Fits on one chip, v5e:1x1, with 0.10 of 16.9 GB. A step there: 1.3 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import mini_robot_only


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  config = mini_robot_only.get_config(data)
  config.pretrained = ""
  return config

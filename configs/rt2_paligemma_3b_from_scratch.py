"""Ablation: `rt2_paligemma_3b_robot_only` without pretrained weights.

The paper's "from scratch" row of table 6.
"""

import ml_collections

from configs import rt2_paligemma_3b_robot_only


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b_robot_only.get_config(data)
  config.pretrained = ""
  return config

"""Ablation: `rt2_paligemma_3b_robot_only` without pretrained weights.

The paper's "from scratch" row of table 6.

Smallest slice that it fits on: v5e:4x8, with 13.8 of 16.9 GB per chip; with
--config.microbatches=2 v5e:4x4, with 13.4. A step on v5e:16x16: 0.387 s,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_paligemma_3b_robot_only


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b_robot_only.get_config(data)
  config.pretrained = ""
  return config

"""Ablation: `rt2_paligemma_3b` fine-tuned on robot data alone.

The paper's "fine-tune" rows of table 6.

Smallest slice that it fits on: v5e:4x8, with 13.8 of 16.9 GB per chip; with
--config.microbatches=2 v5e:4x4, with 13.4. A step on v5e:16x16: 0.387 s,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_paligemma_3b


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b.get_config(data)
  config.web = {}
  config.robot_share = 1.0
  return config

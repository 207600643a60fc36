"""Ablation: `mini_robot_only` without pretrained weights."""

import ml_collections

from configs import mini_robot_only


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  config = mini_robot_only.get_config(data)
  config.pretrained = ""
  return config

"""RT-2-PaLM-E-12B (12.35 B parameters).

From the paper: a ViT of 4 B and a decoder-only language model, learning rate
4e-4, batch 512, 1 M steps, two thirds of every batch robot data (appendices D,
E). PaLM-E's weights are not public: e/14 and Gemma 7B stand in for ViT-4B and
PaLM-8B. Optimizer and bounds as `rt2_pali_x_55b`.

Smallest slice that it fits on: v5e:4x4, with 15.5 of 16.9 GB per chip. A step
on v5e:16x16: 0.908 s, compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_pali_x_55b


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_pali_x_55b.recipe(data)
  config.topology = "v5e:16x16"
  config.model.update({"img": "e/14", "llm": "gemma_7b"})
  config.pretrained = f"{data}/palm_e_12b.npz"
  config.robot_share = 0.66
  config.optimizer.learning_rate = 4e-4
  config.batch_size = 512
  config.num_steps = 1_000_000
  return config

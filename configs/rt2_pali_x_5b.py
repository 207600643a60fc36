"""RT-2-PaLI-X-5B (4.98 B parameters): the paper's smaller ablation model.

From the paper: 270 k steps; all else as `rt2_pali_x_55b` (appendix E). The
parts are PaLI-3's, a ViT-G/14 and a language model of 3 B.

Smallest slice that it fits on: v5e:4x8, with 15.6 of 16.9 GB per chip. A step
on v5e:16x16: 0.920 s, compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_pali_x_55b


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_pali_x_55b.recipe(data)
  config.topology = "v5e:16x16"
  config.model.update({"img": "G/14", "llm": "ul2_3b"})
  config.pretrained = f"{data}/pali_x_5b.npz"
  config.num_steps = 270_000
  return config

"""RT-2 on PaliGemma 2 28B (27.65 B parameters), as `rt2_paligemma_3b`.

Expects `paligemma2-28b-pt-224/` from Hugging Face in the folder of data.

Smallest slice that it fits on: v5p:2x2x4, with 87.8 of 102.8 GB per chip. A
step on v5p:8x8x8: 1.25 s, compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_paligemma_3b


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b.get_config(data)
  config.topology = "v5p:8x8x8"
  config.model.llm = "gemma2_27b"
  config.pretrained = f"{data}/paligemma2-28b-pt-224"
  config.tokenizer_file = f"{config.pretrained}/tokenizer.model"
  return config

"""RT-2 on PaliGemma 2 10B (9.66 B parameters), as `rt2_paligemma_3b`.

Expects `paligemma2-10b-pt-224/` from Hugging Face in the folder of data.

Smallest slice that it fits on: v5e:8x8, with 10.8 of 16.9 GB per chip. A step
on v5e:16x16: 1.66 s, compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_paligemma_3b


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b.get_config(data)
  config.topology = "v5e:16x16"
  config.model.llm = "gemma2_9b"
  config.pretrained = f"{data}/paligemma2-10b-pt-224"
  config.tokenizer_file = f"{config.pretrained}/tokenizer.model"
  return config

"""RT-2 for Language-Table, on PaliGemma 3B (2.92 B parameters).

From the paper: two consecutive frames, learning rate 1e-3, batch 128, 300 k
steps, and the answer `X Y`, two of the 21 integers from -10 to 10 (section 4.1,
appendix E). Here a rare token stands for each of 21 values within ±0.1 m;
`--config.actions.route=integers` writes the integers. Inferred: Adafactor with
a constant rate; half of every batch web data.

Smallest slice that it fits on: v5e:2x2, with 14.1 of 16.9 GB per chip. A step
on v5e:8x8: 0.405 s, compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_pali_x_55b, rt2_paligemma_3b


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = rt2_paligemma_3b.get_config(data)
  config.topology = "v5e:8x8"
  config.observation = {"history": 2}
  config.sources = {
    "language_table": {
      "dataset": "language_table",
      "path": f"{data}/language_table/0.0.1",
      "split": "train[:99%]",
      "eval_split": "train[99%:]",
    }
  }
  config.optimizer = rt2_pali_x_55b.ADAFACTOR
  config.batch_size = 128
  config.num_steps = 300_000
  return config

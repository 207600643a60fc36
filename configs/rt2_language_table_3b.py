"""RT-2 for Language-Table, on PaliGemma 3B (2.92 B parameters).

From the paper: two consecutive frames, learning rate 1e-3, batch 128, 300 k
steps (section 4.1, appendix E). There the answer is `X Y`, two integers of -10
to 10; here it is two rare tokens of 256 bins over the same ±0.1 m. Inferred:
Adafactor with a constant rate; half of every batch web data.

Smallest slice that it fits on: v5e:2x2, with 14.1 of 16.9 GB per chip. A step
on v5e:8x8: 0.405 s, compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_paligemma_3b


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
      "weight": 1.0,
      "filters": {"episodes": {}, "drop_noops": False},
    }
  }
  config.optimizer.update(
    {"name": "adafactor", "learning_rate": 1e-3, "schedule": "constant"}
  )
  config.update({"batch_size": 128, "num_steps": 300_000})
  return config

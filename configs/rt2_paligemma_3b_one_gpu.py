"""`rt2_paligemma_3b` fine-tuned in full on one robot's data, on one GPU.

  --config=configs/rt2_paligemma_3b_one_gpu.py:24,gs://my-bucket/data

names the memory of the GPU, 24, 40 or 80 GB, and the folder of
`rt2_paligemma_3b`. Its 10,000 steps show 50 episodes of 200 steps each 16 (80:
32) times. On an 80 GB H100:

  24: 16.1 GB at batch 16, 37 minutes
  40: 34.5 GB at batch 16, 39 minutes
  80: 66.5 GB at batch 32, 70 minutes

Memory is as XLA plans it. The times were measured, with random weights, with
`remat = "full"`, which computes more twice: 0.224, 0.236 and 0.417 s a step.
With what is kept here they should be shorter (not measured).
Other cards take longer in proportion to their speed (estimated).
"""

import ml_collections

from configs import rt2_paligemma_3b_robot_only

# GB -> what holds parameters and moments, and rows of a batch. Parameters in
# bfloat16 are rounded stochastically; Adafactor's moments are a thousandth of
# them. AdamW's second moment is always float32.
_FITTING = {
  "24": {"name": "adafactor", "param_dtype": "bfloat16"},
  "40": {"param_dtype": "bfloat16", "moment_dtype": "bfloat16"},
  "80": {},
}
_BATCH_SIZE = {"24": 16, "40": 16, "80": 32}
# The most products that fit are kept for the backward pass.
_REMAT = {"24": "ungated", "40": "ungated", "80": "dots"}


def get_config(argument: str = "24") -> ml_collections.ConfigDict:
  gigabytes, _, data = argument.partition(",")
  if gigabytes not in _FITTING:
    raise ValueError(
      f"got {gigabytes!r} GB, expected one of {', '.join(_FITTING)}: "
      "--config=configs/rt2_paligemma_3b_one_gpu.py:24"
    )
  config = rt2_paligemma_3b_robot_only.get_config(data or "data/download")
  config.topology = "v5e:4x4"
  config.sources = {"bridge": config.sources.bridge}
  config.optimizer.update({"warmup_steps": 200} | _FITTING[gigabytes])
  config.model.remat = _REMAT[gigabytes]
  config.batch_size = _BATCH_SIZE[gigabytes]
  config.num_steps = 10_000
  return config

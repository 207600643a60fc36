"""RT-2-PaLI-X-55B (54.56 B parameters): the paper's largest model.

From the paper: ViT-22B and a 50-layer language model of 32 B, learning rate
1e-3, batch 2048, 80 k steps, half of every batch robot data (appendices D, E),
RT-1's data and its action bounds. Inferred: Adafactor with a constant rate, as
PaLI-X and T5 were fine-tuned; 224 pixels. Ours is a decoder, UL2 an
encoder-decoder; PaLI-X's weights are not public, so bring your own as
`pali_x_55b.npz` or set `--config.pretrained=`.

Smallest slice that it fits on: v5p:4x4x8, with 50.8 of 102.8 GB per chip; with
--config.model.remat=full --config.mesh.model=1 v5p:2x4x4, with 56.5. A step on
v5p:8x8x16: 1.20 s, compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import rt2_paligemma_3b

# The paper names neither the optimizer nor a decay of the rate.
ADAFACTOR = {
  "name": "adafactor",
  "learning_rate": 1e-3,
  "schedule": "constant",
  "warmup_steps": 1_000,
}


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  config = recipe(data)
  # Fastest within 20 GB per chip, see docs/step_time.md.
  config.mesh = {"slice": -1, "data": -1, "fsdp": -1, "model": 2}
  config.model.remat = "ungated"
  return config


def recipe(data: str) -> ml_collections.ConfigDict:
  """What the smaller models share: all but how the step fits its slice."""
  config = rt2_paligemma_3b.get_config(data)
  config.topology = "v5p:8x8x16"
  config.model.update({"img": "22B/14", "llm": "ul2_32b"})
  config.pretrained = f"{data}/pali_x_55b.npz"
  del config.sources["bridge"]
  del config.sources.fractal["bounds"]  # those of the action space, RT-1's
  config.optimizer = ADAFACTOR
  config.num_steps = 80_000
  return config

"""25 real BridgeData V2 episodes, overfitted from scratch on a CPU.

Not a way to train a robot: it shows that the whole road works on real data,
and how exactly. The data are 250 steps of 64 x 64 images (reference: the debug
split in Octo's repository); pass `--config.sources.bridge.path=…` when they
lie elsewhere.

Fits on one chip, v5e:1x1, with 0.59 of 16.9 GB. A step there: 3.2 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "topology": "v5e:1x1",
      "model": {
        "img": "tiny/16",
        "llm": "gemma_tiny",
        "image_size": 64,
        "vocab_size": 3200,
      },
      "tokenizer_file": "data/small_tokenizer.model",
      # Room for the longest instruction; for eight action tokens and eos.
      "prompt": {"prefix_length": 24, "suffix_length": 9},
      "sources": {
        "bridge": {
          "dataset": "bridge_dataset",
          "path": "../shared/data/bridge_debug/bridge_dataset/1.0.0",
          # 1st and 99th percentile of the whole dataset, as published with
          # OpenVLA: 256 bins of RT-1's ±1 m would leave ten of them in use.
          "bounds": {
            "dx": (-0.0287, 0.0283),
            "dy": (-0.0417, 0.0409),
            "dz": (-0.0261, 0.0402),
            "droll": (-0.0809, 0.0819),
            "dpitch": (-0.0929, 0.0779),
            "dyaw": (-0.2072, 0.2038),
          },
        },
      },
      # Fifty times that of the 3B recipe: nothing pretrained can be lost.
      "optimizer": {"learning_rate": 1e-3, "warmup_steps": 40},
      # Copies of 7 M parameters are cheaper than their exchange.
      "mesh": {"slice": 1, "data": -1, "fsdp": 1, "model": 1},
      "batch_size": 50,  # five steps see all of the data
      "num_steps": 1_000,  # 200 epochs, enough to memorise it
      "log_every": 20,
      "checkpoint_every": 200,
      "keep_checkpoints": 2,
    }
  )

"""25 real BridgeData V2 episodes, learnt by heart from scratch on a CPU.

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
        "dtype": "float32",
        "remat": "none",
      },
      "pretrained": "",
      "tokenizer_file": "data/small_tokenizer.model",
      "prompt": {"prefix_length": 24, "suffix_length": 9},
      "actions": {"route": "rare", "rt1_compat": False},
      "sources": {
        "bridge": {
          "dataset": "bridge_dataset",
          "split": "train",
          "eval_split": "train",
          "weight": 1.0,
          "filters": {"episodes": {}, "drop_noops": False},
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
      "web": {},
      "robot_share": 1.0,
      "loader": {"num_threads": 2, "max_skipped": 0, "index_folder": ""},
      "augmentation": {
        "crop": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
      },
      "optimizer": {
        "learning_rate": 1e-3,
        "warmup_steps": 40,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
      },
      "evaluation": {"every": 0},
      "mesh": {"slice": 1, "data": -1, "fsdp": 1, "model": 1},
      "batch_size": 50,
      "microbatches": 1,
      "num_steps": 800,
      "seed": 0,
      "log_every": 20,
      "checkpoint_every": 200,
      "keep_checkpoints": 2,
    }
  )

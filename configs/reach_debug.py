"""24 rendered episodes, learnt by heart from scratch on a CPU in minutes.

  python -m data.make_reach_episodes --output_dir=runs/reach \\
    --train_episodes=24 --val_episodes=6

writes them in the format of RT-1's data. A small model of another shape than
the mini ones, to measure and to plan with; too few pictures to learn to see.

Fits on one chip, v5e:1x1, with 0.57 of 16.9 GB. A step there: 3.0 ms,
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
        "reach": {
          "dataset": "fractal20220817_data",
          "split": "train",
          "eval_split": "train",
          "weight": 1.0,
          "filters": {"episodes": {}, "drop_noops": False},
          "path": "runs/reach/fractal20220817_data/0.1.0",
          # The oracle moves 6 cm and 0.4 rad per step at most.
          "bounds": {
            "dx": (-0.064, 0.064),
            "dy": (-0.064, 0.064),
            "dz": (-0.064, 0.064),
            "dyaw": (-0.45, 0.45),
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
        "warmup_steps": 30,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
      },
      "evaluation": {"every": 0},
      "mesh": {"slice": 1, "data": -1, "fsdp": 1, "model": 1},
      "batch_size": 48,
      "microbatches": 1,
      "num_steps": 330,
      "seed": 0,
      "log_every": 20,
      "checkpoint_every": 110,
      "keep_checkpoints": 2,
    }
  )

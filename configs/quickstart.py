"""A small model learns to reach and grasp from rendered episodes, in minutes.

`make quickstart` writes the episodes with `data/make_reach_episodes.py`, in the
format of RT-1's data, trains on them and evaluates on episodes that the model
has not seen.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "model": {
        "img": "tiny/8",
        "llm": "gemma_tiny",
        "image_size": 64,
      },
      "tokenizer": "data/small_tokenizer.model",
      "prompt": {"prefix_length": 24, "suffix_length": 9},
      "actions": {"route": "rare"},
      "sources": {
        "reach": {
          "dataset": "fractal20220817_data",
          "path": "runs/quickstart/data/fractal20220817_data/0.1.0",
          "eval_split": "val",
          # The oracle moves 6 cm and 0.4 rad per step at most.
          "bounds": {
            "dx": (-0.064, 0.064),
            "dy": (-0.064, 0.064),
            "dz": (-0.064, 0.064),
            "dyaw": (-0.45, 0.45),
          },
        },
      },
      "augmentation": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1},
      "optimizer": {
        "learning_rate": 1e-3,
        "warmup_steps": 50,
      },
      "mesh": {"data": -1, "fsdp": 1, "model": 1},
      "batch_size": 32,
      "num_steps": 400,
      "seed": 0,
      "log_every": 20,
      "checkpoint_every": 200,
      "keep_checkpoints": 2,
    }
  )

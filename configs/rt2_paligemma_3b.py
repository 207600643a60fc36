"""RT-2 on PaliGemma 3B (2.92 B parameters): the recipe to start from.

Co-fine-tuned as in the paper, half robot data and half web data in every batch
(section 3.2), 256 uniform bins and 256 rarely used tokens. The paper has no
model of this family: learning rate, length and bounds are ours, after what
works for other models of this size.

  --config=configs/rt2_paligemma_3b.py:gs://my-bucket/data

names the folder that holds data and weights:

  paligemma-3b-pt-224/             from Hugging Face, with tokenizer.model
  fractal20220817_data/0.1.0/      RT-1's data; its last shards are held out
  bridge_dataset/1.0.0/            BridgeData V2, Berkeley's release
  web/captions/ web/vqa/           written by data/make_web_records.py

Smallest slice that it fits on: v5e:4x8, with 13.8 of 16.9 GB per chip; with
--config.microbatches=2 v5e:4x4, with 13.4. A step on v5e:16x16: 0.387 s,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections


def get_config(data: str = "data/download") -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "topology": "v5e:16x16",
      "model": {
        "img": "So400m/14",
        "llm": "gemma_2b",
        "image_size": 224,
        "vocab_size": 257_152,
        "dtype": "bfloat16",
        "remat": "full",
      },
      "pretrained": f"{data}/paligemma-3b-pt-224",
      "tokenizer_file": f"{data}/paligemma-3b-pt-224/tokenizer.model",
      "prompt": {"prefix_length": 32, "suffix_length": 32},
      "actions": {"route": "rare", "rt1_compat": False},
      "sources": {
        "fractal": {
          "dataset": "fractal20220817_data",
          "path": f"{data}/fractal20220817_data/0.1.0",
          "split": "train[:99%]",
          "eval_split": "train[99%:]",
          "weight": 0.5,
          "bounds": "q01_q99",
          "statistics": "data/stats/fractal20220817_data.json",
          "filters": {"episodes": {}, "drop_noops": False},
        },
        "bridge": {
          "dataset": "bridge_dataset_relabelled",
          "path": f"{data}/bridge_dataset/1.0.0",
          "split": "train",
          "eval_split": "val",
          "weight": 0.5,
          "bounds": "q01_q99",
          "statistics": "data/stats/bridge_dataset_relabelled.json",
          "filters": {"episodes": {}, "drop_noops": False},
        },
      },
      "web": {
        "captions": {
          "path": f"{data}/web/captions",
          "split": "train",
          "eval_split": "val",
          "weight": 0.5,
        },
        "vqa": {
          "path": f"{data}/web/vqa",
          "split": "train",
          "eval_split": "val",
          "weight": 0.5,
        },
      },
      "robot_share": 0.5,
      "loader": {"num_threads": 8, "max_skipped": 1000, "index_folder": ""},
      "augmentation": {
        "crop": 0.05,
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.1,
      },
      "optimizer": {
        "name": "adamw",
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "warmup_steps": 1_000,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "moment_dtype": "float32",
        "frozen": (),
        "ema_decay": 0.0,
      },
      "evaluation": {
        "every": 2_000,
        "num_steps": 2_048,
        "num_questions": 2_048,
        "batch_size": 512,
      },
      "mesh": {"slice": -1, "data": -1, "fsdp": -1, "model": -1},
      "batch_size": 2048,
      "microbatches": 1,
      "num_steps": 60_000,
      "seed": 0,
      "log_every": 50,
      "checkpoint_every": 1_000,
      "keep_checkpoints": 3,
    }
  )

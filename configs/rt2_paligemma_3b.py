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
        "dtype": "bfloat16",
        # Least memory; "dots" computes less again (docs/step_time.md).
        "remat": "full",
      },
      "pretrained": f"{data}/paligemma-3b-pt-224",
      "tokenizer_file": f"{data}/paligemma-3b-pt-224/tokenizer.model",
      # In tokens. Examples with longer texts are left out; longer prompts cost
      # memory and time in every example.
      "prompt": {"prefix_length": 32, "suffix_length": 32},
      "sources": {
        "fractal": {
          "dataset": "fractal20220817_data",
          "path": f"{data}/fractal20220817_data/0.1.0",
          # Its release has no other split.
          "split": "train[:99%]",
          "eval_split": "train[99%:]",
          "weight": 0.5,
          # RT-1's bounds leave most of the 256 bins unused.
          "bounds": "q01_q99",
          "statistics": "data/stats/fractal20220817_data.json",
        },
        "bridge": {
          # Reached motions rather than commanded ones, as Octo and OpenVLA.
          "dataset": "bridge_dataset_relabelled",
          "path": f"{data}/bridge_dataset/1.0.0",
          "filters": {
            "episodes": {},
            "not_episodes": {},
            "drop_noops": False,
            "text_length": [1, 1000],  # a third of Bridge says nothing
          },
          "eval_split": "val",
          "weight": 0.5,
          "bounds": "q01_q99",
          "statistics": "data/stats/bridge_dataset_relabelled.json",
        },
      },
      "web": {
        name: {
          "path": f"{data}/web/{name}",
          "eval_split": "val",
          "weight": 0.5,
        }
        for name in ("captions", "vqa")
      },
      "robot_share": 0.5,  # the paper's for RT-2-PaLI-X
      "loader": {
        "num_threads": 8,
        "max_skipped": 1000,
        "index_folder": f"{data}/index",
      },
      "augmentation": {
        "crop": 0.05,
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.1,
      },
      # Ours. Pretrained weights forget at a larger rate with AdamW.
      "optimizer": {"learning_rate": 2e-5, "warmup_steps": 1_000},
      "evaluation": {
        "every": 2_000,
        "num_robot_steps": 2_048,
        "num_questions": 2_048,
        "batch_size": 512,
      },
      "batch_size": 2048,  # RT-2-PaLI-X's
      "num_steps": 60_000,
    }
  )

"""The mini VLM (2.2 M parameters): RT-2 in miniature begins here.

Web pretraining for the simulated tabletop: what things are called, what there
is to know about them, and where in a picture they are. Small enough for two CPU
cores, and for `configs/mini_cofinetuned.py` to start from. It starts from
`configs/mini_encoder.py`.

  --config=configs/mini_vlm.py:runs/mini

names the folder of the runs and the data, as `make mini` fills it.

Fits on one chip, v5e:1x1, with 0.17 of 16.9 GB. A step there: 2.5 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

# How often each skill is asked. Pointing is what acting is made of.
SKILLS = {
  "point": 4.0,
  "point_by_fact": 3.0,
  "hand": 1.0,
  "name": 1.0,
  "category": 0.5,
  "keyword": 0.25,
  "fact": 0.5,
  "arithmetic": 0.5,
  "language": 0.5,
  "detect": 0.5,
}


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "topology": "v5e:1x1",
      "model": {
        "img": "mini/16",
        "llm": "gemma_mini",
        "image_size": 64,
        "vocab_size": 5504,
        "remat": "dots",
      },
      "pretrained": f"{data}/encoder",
      "tokenizer_file": "data/picture_tokenizer.model",
      "prompt": {"prefix_length": 16, "suffix_length": 9},
      "web": {
        skill: web(data, skill, share) for skill, share in SKILLS.items()
      },
      "robot_share": 0.0,
      # A few words of other languages are longer than all other answers.
      "loader": {
        "num_threads": 1,
        "max_skipped": 20_000,
        "index_folder": f"{data}/index",
      },
      "optimizer": {
        "name": "muon",
        "learning_rate": 1.5e-3,
        "warmup_steps": 100,
        "weight_decay": 0.05,
        "b2": 0.98,  # runs are short: a mean over 50 steps rather than 1,000
      },
      "evaluation": {
        "every": 2_000,
        "num_questions": 250,  # all of the smallest skills
        "batch_size": 125,
      },
      # Copies of 2 M parameters are cheaper than their exchange.
      "mesh": {"slice": 1, "data": -1, "fsdp": 1, "model": 1},
      "batch_size": 128,
      "num_steps": 3_000,
      "log_every": 100,
      "checkpoint_every": 500,
      "keep_checkpoints": 1,
    }
  )


def web(data: str, skill: str, share: float) -> dict:
  """One skill's questions, as data/make_web_pictures.py wrote them."""
  return {"path": f"{data}/web/{skill}", "eval_split": "val", "weight": share}

"""`mini_cofinetuned` learns chain of thought (paper, section 4.4).

As in the paper, some steps more in which a plan comes before the action: what
the robot acts on and where that is, `Plan: apple <loc0416><loc0608>. Action:
…`. A demonstration's plan only repeats a word of its instruction. That "the red
thing" or "two plus five" have plans too is taught by the web (skill `plan`),
which asks the same of its own pictures and knows no action.

Fits on one chip, v5e:1x1, with 0.20 of 16.9 GB. A step there: 2.2 ms,
compiler-predicted (launch/plan.py, fast mode).
"""

import ml_collections

from configs import mini_cofinetuned, mini_vlm


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  config = mini_cofinetuned.get_config(data)
  config.pretrained = f"{data}/cofinetuned"
  config.sources.tabletop.dataset = "tabletop_with_plan"
  config.web.plan = mini_vlm.web(data, "plan", 6.0)
  config.prompt.plan_length = 7
  config.prompt.suffix_length = 17  # plan, its end, eight numbers and eos
  config.optimizer.learning_rate = 5e-4
  config.evaluation.every = 1_500
  config.num_steps = 1_500
  return config

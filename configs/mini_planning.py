"""`mini_cofinetuned` with chain of thought (paper, section 4.4).

Before it acts, the robot writes what it acts on and where that is:
`Plan: apple <loc0416><loc0608>. Action: …`. A demonstration's plan only repeats
words of its instruction. What "the red thing" or "two plus five" may be is
taught by the web (skill `plan`), which asks for plans for its own pictures and
knows no action.

Fits on one chip, v5e:1x1, with 0.20 of 16.9 GB. A step there: 2.2 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import mini_cofinetuned, mini_vlm


def get_config(data: str = "runs/mini") -> ml_collections.ConfigDict:
  config = mini_cofinetuned.get_config(data)
  config.sources.tabletop.dataset = "tabletop_with_plan"
  config.web.plan = mini_vlm.web(data, "plan", 6.0)
  config.prompt.plan_length = 7
  config.prompt.suffix_length = 17  # plan, its end, eight numbers and eos
  return config

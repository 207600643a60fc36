"""24 rendered episodes, learnt by heart from scratch on a CPU in minutes.

  python -m data.make_reach_episodes --output_dir=runs/reach \\
    --train_episodes=24 --val_episodes=6

writes them in the format of RT-1's data. A small model of another shape than
the mini ones, to measure and to plan with; too few pictures to learn to see.

Fits on one chip, v5e:1x1, with 0.57 of 16.9 GB. A step there: 3.0 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import bridge_debug


def get_config() -> ml_collections.ConfigDict:
  config = bridge_debug.get_config()
  config.sources = {
    "reach": {
      "dataset": "fractal20220817_data",
      "path": "runs/reach/fractal20220817_data/0.1.0",
      # The oracle moves 6 cm and 0.4 rad per step at most.
      "bounds": {
        "dx": (-0.064, 0.064),
        "dy": (-0.064, 0.064),
        "dz": (-0.064, 0.064),
        "dyaw": (-0.45, 0.45),
      },
    },
  }
  config.optimizer.warmup_steps = 30
  config.batch_size = 48
  config.num_steps = 330
  config.checkpoint_every = 110
  return config

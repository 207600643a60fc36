"""`bridge_debug` on made-up episodes in the format of RT-1's data.

  python -m data.make_rt1_episodes --output_dir=runs/rt1 --train_episodes=24

writes them. To measure speed: there is nothing to learn but the answers.

  --config=configs/rt1_debug.py:two_cameras

takes them for those of a robot with a second camera, which sees the same, and a
state.

Fits on one chip, v5e:1x1, with 0.57 of 16.9 GB. A step there: 3.0 ms,
compiler-predicted (launch/estimate.py, fast mode).
"""

import ml_collections

from configs import bridge_debug


def get_config(robot: str = "one_camera") -> ml_collections.ConfigDict:
  config = bridge_debug.get_config()
  config.sources = {
    "rt1": {
      "dataset": "fractal20220817_data",
      "path": "runs/rt1/fractal20220817_data/0.1.0",
      # What data/make_rt1_episodes.py moves by in a step of the default length.
      "bounds": {
        "dx": (-0.05, 0.05),
        "dy": (-0.06, 0.06),
        "dz": (-0.05, 0.05),
        "dyaw": (-0.28, 0.28),
      },
    },
  }
  if robot not in ("one_camera", "two_cameras"):
    raise ValueError(f"got {robot!r}, expected one_camera or two_cameras")
  if robot == "two_cameras":
    config.sources.rt1.dataset = "data/rt1_two_cameras.json"
    config.sources.rt1.bounds = {}
    config.observation = {"cameras": ("primary", "wrist"), "state": True}
    config.prompt.prefix_length = 40
    config.prompt.suffix_length = 7
    config.prompt.template = "Q: what should the robot do to {instruction}? "
    config.prompt.template += "State: {state} A:"
  config.batch_size = 48  # divides by more numbers of devices than 50
  return config

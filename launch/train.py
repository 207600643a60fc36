"""Trains a model: `python launch/train.py --config=configs/x.py --workdir=DIR`.

Start it again with the same flags after a crash and it goes on where the
newest checkpoint stands. Single values are overridden on the command line:
`--config.batch_size=64`.
"""

import logging

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from rt2_jax import training

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "One experiment, a file in configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints and logs go, and are resumed from."
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"got {argv[1:]}, expected flags only")
  absl.logging.set_verbosity(absl.logging.WARNING)
  # Ours alone: a checkpoint library's thirty lines hide the one that counts.
  logging.getLogger("rt2_jax").setLevel(logging.INFO)
  training.train(_CONFIG.value.to_dict(), _WORKDIR.value)
  print(f"checkpoints: {_WORKDIR.value}/checkpoints")
  print(f"TensorBoard log: {_WORKDIR.value}/tensorboard")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)

"""Trains a model: `python launch/train.py --config=configs/x.py --workdir=DIR`.

Start it again with the same flags after a crash and it goes on where the
newest checkpoint stands. Single values are overridden on the command line:
`--config.batch_size=64`.

On several hosts start it once on each, with one workdir that all of them see:
`--multihost` finds the others on TPU pods, under Slurm and Open MPI; elsewhere
add `--coordinator=HOST:PORT --num_processes=N --process_id=I`.
"""

import logging

import absl.logging
import jax
from absl import app, flags

from launch import experiment_flag
from rt2_jax import hosts, platforms, training
from rt2_jax.errors import ends_in_one_message
from rt2_jax.storage import locate

experiment_flag.define()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints and logs go, and are resumed from."
)
_MULTIHOST = flags.DEFINE_boolean(
  "multihost", False, "One of several processes that train one model."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0; default: from the environment."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Default: from the environment.", 1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "From 0; default: from the environment.", 0
)
_TIMEOUT = flags.DEFINE_integer(
  "timeout", 300, "Seconds to wait for the other processes.", 1
)


@ends_in_one_message
def main(argv):
  platforms.prepare()
  if len(argv) > 1:
    raise app.UsageError(f"got {argv[1:]}, expected flags only")
  workdir = locate(_WORKDIR.value, "--workdir")
  if _MULTIHOST.value:
    hosts.join(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      _TIMEOUT.value,
    )
  # Orbax logs the traceback of an error that we then name in one message.
  absl.logging.set_verbosity(absl.logging.FATAL)
  # Ours alone: a checkpoint library's thirty lines hide the one that counts.
  if jax.process_index() == 0:
    logging.getLogger("rt2_jax").setLevel(logging.INFO)
  training.train(experiment_flag.read(), workdir)
  print(f"checkpoints: {workdir}/checkpoints")
  print(f"TensorBoard log: {workdir}/tensorboard")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)

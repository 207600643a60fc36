"""Trains a model: `python launch/train.py --config=configs/x.py --workdir=DIR`.

Start it again with the same flags after a crash and it goes on from the newest
checkpoint. SIGTERM or Ctrl-C to any process saves the step on all of them and
ends with exit code 42; so does a host that is lost or hangs, without saving.
Single values are overridden on the command line: `--config.batch_size=64`.

On several hosts start it once on each, with one workdir that all of them see.
`--multihost` finds the others on TPU pods, under Slurm and Open MPI; elsewhere
add `--coordinator=HOST:PORT --num_processes=N --process_id=I`.
"""

import logging

import absl.logging
import jax
from absl import app, flags

from launch import experiment_flag, program
from rt2_jax import hosts, platforms, profiling, training
from rt2_jax.errors import UserError
from rt2_jax.fields import construct
from rt2_jax.storage import Path, locate
from rt2_jax.trackers import TrackingConfig

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
_PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps", None, "Steps to trace for TensorBoard, such as 100:110."
)
_TIMEOUT = flags.DEFINE_integer(
  "timeout", 300, "Seconds to wait for the other processes.", 1
)


@program.main_on_devices
def main():
  platforms.reserve_most_of_a_gpu()
  workdir = locate(_WORKDIR.value, "--workdir")
  steps = _PROFILE_STEPS.value
  profiled = profiling.parse_steps(steps) if steps else range(0)
  for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
    if flag.present and not _MULTIHOST.value:
      raise UserError(
        f"got --{flag.name} without --multihost, expected both: this process "
        "would train alone; add --multihost"
      )
  if _MULTIHOST.value:
    hosts.join(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      _TIMEOUT.value,
    )
  quiet_log()
  keep_compiled(workdir)
  config = experiment_flag.read()
  tracking = construct(
    TrackingConfig, "config.tracking.", config.get("tracking", {})
  )
  program.import_extras(*tracking.trackers)
  training.train(config, workdir, profiled)
  print(f"checkpoints: {workdir}/checkpoints")
  print(f"TensorBoard log: {workdir}/tensorboard")


def quiet_log():
  """Shows the package's own lines, each after the time, on process 0."""
  # Orbax logs the traceback of an error that we then name in one message.
  absl.logging.set_verbosity(absl.logging.FATAL)
  absl.logging.get_absl_handler().setFormatter(
    logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
  )
  # Ours alone: a checkpoint library's thirty lines hide the one that counts.
  if jax.process_index() == 0:
    logging.getLogger("rt2_jax").setLevel(logging.INFO)


def keep_compiled(workdir: Path):
  """Keeps compiled programs in the workdir, so that a restart reads them.

  Not on CPUs, where another host may have another instruction set.
  """
  on_cpu = jax.default_backend() == "cpu"
  if not on_cpu and not jax.config.jax_compilation_cache_dir:
    folder = str(workdir / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)

"""Runs a training on several hosts, and starts it again until it is done.

The first argument is a command:

  create   gets the machines
  run      ships the committed code, trains, starts again after a preemption
  status   says how machines and processes are
  logs     prints the newest lines of every process
  stop     ends the training; it saves first
  delete   gives the machines back

--backend=local starts --num_processes on this machine, to try several hosts:

  python launch/pod.py run --backend=local --num_processes=4 \\
    --config=configs/bridge_debug.py --config.batch_size=48 \\
    --config.sources.bridge.path=/data/bridge_debug --workdir=/tmp/run

All flags of launch/train.py may follow; they are checked here and handed on.
Ask --dry_run for the commands that a call would run. See docs/pods.md.
"""

import pathlib
import sys

from absl import app, flags

from launch import experiment_flag, program
from launch import train as _train  # noqa: F401 (its flags are taken here)
from rt2_jax import storage
from rt2_jax.clusters import code, gke, restarts, slurm, tpu_vm
from rt2_jax.clusters.cluster import Cluster, Job
from rt2_jax.clusters.commands import Commands
from rt2_jax.clusters.local import Local
from rt2_jax.errors import UserError, unknown_name

COMMANDS = ("create", "run", "status", "logs", "stop", "delete")
BACKENDS = ("local", "slurm", "tpu_vm", "gke")

_BACKEND = flags.DEFINE_enum("backend", None, BACKENDS, "The kind of machines.")
_NAME = flags.DEFINE_string(
  "name", None, "Of the run; default: the config file's."
)
_FOLDER = flags.DEFINE_string(
  "folder",
  "runs/pods",
  "local, slurm: where code and logs are kept, a folder for each run; for "
  "Slurm on a disk that all nodes share.",
)
_MAX_RESTARTS = flags.DEFINE_integer(
  "max_restarts", 100, "After preemptions and losses, before giving up.", 0
)
_ALLOW_DIRTY = flags.DEFINE_boolean(
  "allow_dirty", False, "Run HEAD although there are uncommitted changes."
)
_DRY_RUN = flags.DEFINE_boolean(
  "dry_run", False, "Print every command instead of running it."
)
_SETUP = flags.DEFINE_string(
  "setup",
  None,
  "slurm, tpu_vm, gke: shell commands before the training, such as 'module "
  "load cuda'; default: for the cloud, install the commit's packages.",
)
_OPTIONS = flags.DEFINE_multi_string(
  "options",
  [],
  "More options of the program that asks for machines (sbatch, gcloud, xpk), "
  "such as --options=--spot or --options=--time=24:00:00.",
)
_NODES = flags.DEFINE_integer("nodes", 1, "slurm: nodes.", 1)
_PARTITION = flags.DEFINE_string(
  "partition", "", "slurm: default: the cluster's."
)
_ACCELERATOR = flags.DEFINE_string(
  "accelerator", None, "tpu_vm, gke: the slice, such as v5litepod-256."
)
_NUM_SLICES = flags.DEFINE_integer(
  "num_slices", 1, "tpu_vm, gke: slices of that kind.", 1
)
_RUNTIME_VERSION = flags.DEFINE_string(
  "runtime_version", None, "tpu_vm: such as v2-alpha-tpuv5-lite."
)
_ZONE = flags.DEFINE_string("zone", None, "tpu_vm, gke: such as us-west4-a.")
_PROJECT = flags.DEFINE_string(
  "project", "", "tpu_vm, gke: default: gcloud's own."
)
_CLUSTER = flags.DEFINE_string("cluster", None, "gke: the cluster's name.")
_IMAGE = flags.DEFINE_string(
  "image", gke.IMAGE, "gke: a container image to which the code is added."
)
for _flag in ("config", "workdir", "num_processes"):
  flags.declare_key_flag(_flag)

# Flags of launch/train.py that tell its processes apart.
_SET_HERE = ("multihost", "coordinator", "process_id")


@program.main
def main(command):
  if command not in COMMANDS:
    raise unknown_name("the command of pod.py", command, COMMANDS)
  cluster = make_cluster(run_name())
  if command == "run" and _DRY_RUN.value:
    cluster.start(make_job())
  elif command == "run":
    restarts.run(cluster, make_job())
  elif command == "status":
    print(cluster.status())
  else:
    getattr(cluster, command)()


def make_cluster(name: str) -> Cluster:
  """Reads the backend's flags."""
  folder = storage.locate(_FOLDER.value, "--folder").resolve() / name
  num_processes = flags.FLAGS.num_processes
  if _BACKEND.value == "local":
    return Local(folder, num_processes or 1, _DRY_RUN.value)
  module = {"slurm": slurm, "tpu_vm": tpu_vm, "gke": gke}[_BACKEND.value]
  commands = Commands(module.ADVICE, module.INSTALL, _DRY_RUN.value)
  common = {"commands": commands, "options": _OPTIONS.value}
  if _SETUP.value is not None:
    common["setup"] = _SETUP.value
  if _BACKEND.value == "slurm":
    return slurm.Slurm(
      folder,
      _NODES.value,
      num_processes or _NODES.value,
      partition=_PARTITION.value,
      **common,
    )
  common |= {
    "name": name,
    "zone": required(_ZONE),
    "accelerator": required(_ACCELERATOR),
    "project": _PROJECT.value,
    "num_slices": _NUM_SLICES.value,
  }
  if _BACKEND.value == "tpu_vm":
    version = required(_RUNTIME_VERSION)
    return tpu_vm.TpuVm(runtime_version=version, **common)
  cluster = required(_CLUSTER)
  return gke.Gke(cluster=cluster, image=_IMAGE.value, **common)


def required(flag: flags.FlagHolder) -> str:
  """Returns a flag's value.

  Raises:
    UserError: there is none.
  """
  if flag.value is None:
    raise UserError(
      f"got no --{flag.name}, which --backend={_BACKEND.value} needs"
    )
  return flag.value


def make_job() -> Job:
  """Finds what is to run: the commit, and the arguments of launch/train.py."""
  for name in _SET_HERE:
    if flags.FLAGS[name].present:
      raise UserError(
        f"got --{name}, which pod.py sets for every process; leave it out"
      )
  for name in ("config", "workdir"):
    if flags.FLAGS[name].value is None:
      raise UserError(
        f"got no --{name}, expected the flags of launch/train.py after `run`"
      )
  here = pathlib.Path.cwd()
  shipped, warning = code.committed(here, _ALLOW_DIRTY.value)
  if warning:
    print(warning, file=sys.stderr)
  arguments = [*train_arguments(sys.argv), f"--workdir={workdir()}"]
  if _BACKEND.value in ("local", "slurm"):
    written = [*arguments, *experiment_flag.arguments()]
    code.check_paths(written, shipped, here)
  return Job(
    run_name(), shipped, "launch/train.py", arguments, _MAX_RESTARTS.value
  )


def run_name() -> str:
  """Returns --name, or the config file's name as a cluster can take it."""
  if _NAME.value is not None:
    return code.check_name(_NAME.value)
  if flags.FLAGS["config"].value is None:
    raise UserError("got neither --name nor --config, expected one of them")
  stem = pathlib.Path(experiment_flag.path()).stem
  return code.check_name(stem.lower().replace("_", "-")[:40].strip("-"))


def workdir() -> str:
  """Returns --workdir; a relative path starts where the person stands.

  Raises:
    UserError: a folder on this machine, for hosts that share no disk.
  """
  path = flags.FLAGS["workdir"].value
  if storage.is_url(path):
    return path
  if _BACKEND.value in ("tpu_vm", "gke"):
    raise UserError(
      f"got --workdir={path!r}, expected a bucket such as gs://my-bucket/run: "
      "the hosts of a TPU slice share no disk, and lose theirs"
    )
  return str(storage.locate(path, "--workdir").resolve())


def train_arguments(argv: list[str]) -> list[str]:
  """Returns the arguments that are not pod.py's own, as they were written."""
  own = flags.FlagValues()
  for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__]):
    own[flag.name] = flag
  for name in ("num_processes", "workdir"):
    own[name] = flags.FLAGS[name]
  own.set_gnu_getopt(True)
  _, _, *rest = own(argv, known_only=True)
  return rest


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt(True)
  flags.mark_flags_as_required(["backend"])
  app.run(main)

"""Runs a training on several hosts: `python launch/pod.py COMMAND --flags`.

  create   gets the machines
  run      ships the committed code, trains, starts again after a preemption
  status   says how machines and processes are
  logs     prints the newest lines of every process
  stop     ends the training; it saves first
  delete   gives the machines back

--backend=local starts --num_processes on this machine, to try several hosts:

  python launch/pod.py run --backend=local --num_processes=4 \\
    --config=configs/bridge_debug.py --workdir=/tmp/run

All flags of launch/train.py may follow; they are checked here and handed on.
Ask --dry_run for the commands that a call would run. See docs/pods.md.
"""

import pathlib
import sys

from absl import app, flags

from launch import train  # its flags are accepted here as well
from rt2_jax.clusters import code, restarts
from rt2_jax.clusters.cluster import Cluster, Job
from rt2_jax.clusters.local import Local
from rt2_jax.errors import UserError, ends_in_one_message, unknown_name

COMMANDS = ("create", "run", "status", "logs", "stop", "delete")

_BACKEND = flags.DEFINE_enum(
  "backend", None, ["local"], "The kind of machines."
)
_NAME = flags.DEFINE_string(
  "name", None, "Of the run; default: the config file's."
)
_FOLDER = flags.DEFINE_string(
  "folder",
  "runs/pods",
  "Where code and logs of runs are kept, one folder each.",
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
for _flag in ("config", "workdir", "num_processes"):
  flags.declare_key_flag(_flag)

# Flags of launch/train.py that tell its processes apart.
_SET_HERE = ("multihost", "coordinator", "process_id")


@ends_in_one_message
def main(argv):
  command = argv[1] if len(argv) > 1 else ""
  if command not in COMMANDS:
    raise unknown_name("the command of pod.py", command, COMMANDS)
  if len(argv) > 2:
    raise app.UsageError(f"got {argv[2:]}, expected flags after {command!r}")
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
  folder = pathlib.Path(_FOLDER.value).expanduser().resolve() / name
  return Local(folder, flags.FLAGS.num_processes or 1, _DRY_RUN.value)


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
  code.check_paths(arguments, shipped, here)
  return Job(
    run_name(), shipped, "launch/train.py", arguments, _MAX_RESTARTS.value
  )


def run_name() -> str:
  """Returns --name, or the config file's name as a cluster can take it."""
  if _NAME.value is not None:
    return code.check_name(_NAME.value)
  if flags.FLAGS["config"].value is None:
    raise UserError("got neither --name nor --config, expected one of them")
  stem = pathlib.Path(train.experiment_flag.path()).stem
  return code.check_name(stem.lower().replace("_", "-")[:40].strip("-"))


def workdir() -> str:
  """Returns --workdir; a relative path starts where the person stands."""
  path = flags.FLAGS["workdir"].value
  return (
    path if "://" in path else str(pathlib.Path(path).expanduser().resolve())
  )


def train_arguments(argv: list[str]) -> list[str]:
  """Returns the arguments that are not pod.py's own, as they were written."""
  own = flags.FlagValues()
  for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__]):
    own[flag.name] = flag
  own["num_processes"] = flags.FLAGS["num_processes"]
  own["workdir"] = flags.FLAGS["workdir"]
  own.set_gnu_getopt(True)
  _, _, *rest = own(argv, known_only=True)
  return rest


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt(True)
  flags.mark_flags_as_required(["backend"])
  app.run(main)

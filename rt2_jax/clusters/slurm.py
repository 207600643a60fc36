"""A Slurm cluster: `sbatch`, `squeue`, `scontrol` and `scancel`.

The batch script starts the training on all nodes with `srun`, whose environment
is how JAX finds the other processes. The script also restarts it, so that
nobody has to watch: it requeues its own job after exit code 42 and after a
killed process. Slurm requeues it after a lost node, after a preemption by other
jobs, and for `scontrol requeue`. `--signal` tells the training two minutes
before the partition's time limit, so that a job may be longer than that.

The run's folder lies on a disk that all nodes share. It holds `code/`,
`job.sh`, one `process_N.log` for each process, `job.log` for the script's own
words, and `job` and `ended`: the job's number and its last exit code.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rt2_jax import storage
from rt2_jax.clusters import log_lines
from rt2_jax.clusters.cluster import Cluster, Ending, Job, Outcome
from rt2_jax.clusters.commands import CommandError, Commands
from rt2_jax.errors import UserError

INSTALL = dict.fromkeys(
  ("sbatch", "squeue", "sinfo", "scontrol", "scancel"),
  "start pod.py on a login node of a Slurm cluster",
)
ADVICE: Mapping[str, str] = {
  "invalid partition": "pass one of `sinfo`'s partitions as --partition",
  "node count specification invalid|more processors than|configuration is not "
  "available|Invalid feature": "ask for no more than `sinfo` shows: fewer "
  "--nodes, another --partition, or other --options",
  "time limit": "pass --options=--time=… within the partition's limit; the run "
  "goes on after it",
  "QOS|AssocMax|association|account": "your account's limits: wait for your "
  "other jobs, or pass another --options=--account=… or --options=--qos=…",
  "contact slurm controller|munge|protocol authentication": "slurmctld or "
  "munge does not answer: run pod.py on a login node, or ask for help there",
}

# Reasons for which a job would wait for ever.
_NEVER = ("PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints")
_MISSING = "(none)"

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks={processes}
#SBATCH --output={folder}/job.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
{options}
cd {code} || exit 1
export PYTHONPATH={code} PYTHONUNBUFFERED=1
{setup}
told=
trap 'told=yes' TERM
# --wait: the others save as well after the first has ended; two minutes.
srun --kill-on-bad-exit=0 --wait=120 --open-mode=append \\
  --output={folder}/process_%t.log \\
  {command} 2> {folder}/srun.err &
wait $!; code=$?
cat {folder}/srun.err
# An error of its own outweighs 42: the others only miss that process.
if (( code < 128 )); then
  own=$(sed -n 's/.*Exited with exit code //p' {folder}/srun.err |
    grep -vx 42 | head -1)
  code=${{own:-$code}}
fi
# Slurm ends the job itself: to requeue it, or for good.
if [[ $told ]]; then wait; exit $code; fi
if (( code == 42 || code >= 128 )) &&
  (( ${{SLURM_RESTART_COUNT:-0}} < {max_restarts} )); then
  echo "exit code $code: restart $(( ${{SLURM_RESTART_COUNT:-0}} + 1 ))" \\
    "of at most {max_restarts}"
  trap "exit $code" TERM
  if scontrol requeue "$SLURM_JOB_ID"; then sleep 300 & wait; fi
fi
echo $code > {folder}/ended
exit $code
"""


@dataclasses.dataclass
class Slurm(Cluster):
  """A job of a Slurm cluster.

  Attributes:
    folder: of the run, absolute and on a shared disk.
    nodes: how many.
    num_processes: of all nodes together; one per GPU, as JAX expects.
    partition: "" for the default one.
    options: more of `sbatch`, e.g. "--time=24:00:00".
    setup: shell lines before the training, e.g. "module load cuda".
    commands: how Slurm's programs are run.
    poll_s: seconds between looks at the queue.
    say: where lines are printed.
  """

  folder: pathlib.Path
  nodes: int
  num_processes: int
  commands: Commands
  partition: str = ""
  options: Sequence[str] = ()
  setup: str = ""
  poll_s: float = 10.0
  say: Callable[[str], None] = print

  def __post_init__(self):
    self._log = log_lines.Follower(self._log_of(0))

  def create(self):
    """Looks whether the partition has that many nodes; creates nothing."""
    self._check_partition()
    chosen = [f"--partition={self.partition}"] if self.partition else []
    self.say(self.commands.run("sinfo", *chosen).rstrip())

  def start(self, job: Job):
    self._check_partition()
    script = self.script(job)
    if self.commands.dry_run:
      self.say(f"git archive {job.code.commit} | tar -x -C {self._code}")
      self.say(f"cat > {self._script} <<'EOF'\n{script}EOF")
    else:
      self._refuse_second(job)
      job.code.unpack(self._code)
      self._ended.unlink(missing_ok=True)
      storage.write(self._script, script)
    self._log.skip_to_end()
    number = self.commands.run("sbatch", "--parsable", str(self._script))
    if self.commands.dry_run:
      return
    # "17;cluster" where there are several.
    number = number.strip().partition(";")[0]
    storage.write(self._number, number)
    self.say(
      f"job {number} is queued; it goes on, and restarts, without this program "
      "(Ctrl-C leaves it alone)"
    )

  def wait(self) -> Outcome:
    said = ""
    while True:
      state, reason = self._state()
      for line in self._log.new_lines():
        self.say(line)
      if state == "PENDING" and reason not in ("None", said):
        said = reason
        self.say(f"waits in the queue: {reason}")
        if reason in _NEVER:
          raise UserError(
            f"got a job that waits for ever ({reason}), expected one that "
            f"{self.nodes} nodes of the partition can take; pod.py stop, then "
            "fewer --nodes, another --partition or a shorter --options=--time="
          )
      if outcome := self._outcome(state):
        return outcome
      time.sleep(self.poll_s)

  def recover(self):
    pass  # the next job gets whole nodes

  def status(self) -> str:
    state, reason = self._state()
    lines = [f"{self.folder}: job {self._job or _MISSING} {state} {reason}"]
    for n in range(self.num_processes):
      lines.append(f"process {n}: {log_lines.last(self._log_of(n), 1)}")
    return "\n".join(lines)

  def logs(self):
    logs = {f"process {n}": self._log_of(n) for n in range(self.num_processes)}
    for name, path in (logs | {"job": self.folder / "job.log"}).items():
      self.say(f"== {name}: {path}")
      self.say(log_lines.last(path, 20))

  def stop(self):
    """Ends the job; Slurm's own KillWait is the time for saving."""
    if self._job or self.commands.dry_run:
      self.commands.run("scancel", self._job or "$JOB")

  def delete(self):
    self.stop()
    if self.commands.dry_run:
      self.say(f"rm -r {self.folder}")
      return
    while self._state()[0] in ("PENDING", "RUNNING", "COMPLETING"):
      time.sleep(self.poll_s)
    shutil.rmtree(self.folder, ignore_errors=True)

  def script(self, job: Job) -> str:
    """Writes the batch script of a job."""
    options = [*self.options]
    if self.partition:
      options.append(f"--partition={self.partition}")
    command = (sys.executable, job.program, *job.arguments, "--multihost")
    return _SCRIPT.format(
      name=job.name,
      nodes=self.nodes,
      processes=self.num_processes,
      folder=shlex.quote(str(self.folder)),
      code=shlex.quote(str(self._code)),
      options="".join(f"#SBATCH {option}\n" for option in options),
      setup=self.setup,
      command=shlex.join(command),
      max_restarts=job.max_restarts,
    )

  @property
  def _code(self) -> pathlib.Path:
    return self.folder / "code"

  @property
  def _script(self) -> pathlib.Path:
    return self.folder / "job.sh"

  @property
  def _number(self) -> pathlib.Path:
    return self.folder / "job"

  @property
  def _ended(self) -> pathlib.Path:
    return self.folder / "ended"

  @property
  def _job(self) -> str:
    return self._number.read_text() if self._number.exists() else ""

  def _log_of(self, process: int) -> pathlib.Path:
    return self.folder / f"process_{process}.log"

  def _check_partition(self):
    known = self.commands.run("sinfo", "--noheader", "--format=%R").split()
    if self.partition and known and self.partition not in known:
      raise UserError(
        f"got --partition={self.partition!r}, expected one of this cluster's: "
        f"{', '.join(sorted(set(known)))}"
      )

  def _refuse_second(self, job: Job):
    state, _ = self._state()
    if state in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED"):
      raise UserError(
        f"got run {job.name!r}, whose job {self._job} is {state}; look at it "
        "with `pod.py status` and `pod.py logs`, stop it with `pod.py stop`, "
        "or choose another --name"
      )

  def _state(self) -> tuple[str, str]:
    """The job's state and reason in Slurm's words; _MISSING for no job.

    Slurm forgets a job minutes after its end.
    """
    if not self._job:
      return _MISSING, ""
    queue = ("squeue", "--noheader", "--states=all", f"--jobs={self._job}")
    said = ""
    try:
      said = self.commands.run(*queue, "--format=%T|%r").strip()
    except CommandError as error:
      if "Invalid job id" not in error.said:
        raise
    state, _, reason = said.partition("|")
    return state or _MISSING, reason

  def _outcome(self, state: str) -> Outcome | None:
    """None while it waits or runs.

    Raises:
      UserError: the training ended with an error, or with its last restart.
    """
    running = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
    if state in (*running, "REQUEUED", "REQUEUE_HOLD", "SIGNALING"):
      return None
    if state == "COMPLETED":
      return Outcome(Ending.DONE)
    if state == "CANCELLED":
      return Outcome(Ending.STOPPED)
    code = self._ended.read_text().strip() if self._ended.exists() else ""
    if code == "0":
      return Outcome(Ending.DONE)
    if state in ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED"):
      return Outcome(Ending.LOST, f"Slurm says {state}")
    raise self._error(state, code)

  def _error(self, state: str, code: str) -> UserError:
    logs = [self._log_of(n) for n in range(self.num_processes)]
    logs.append(self.folder / "job.log")
    words = [f"{path}:\n{log_lines.last(path, 12)}" for path in logs[:1]]
    words.append(f"{logs[-1]}:\n{log_lines.last(logs[-1], 6)}")
    what = f"exit code {code}" if code else "no exit code"
    advice = "look at the logs of all processes in its folder"
    if code == "42" or (code.isdecimal() and int(code) >= 128):
      advice = "its restarts are used up: run again, or raise --max_restarts"
    if state == "TIMEOUT":
      advice = "it did not save within the last two minutes before the limit"
    return UserError(
      f"got {what} and state {state} from job {self._job}, expected 0; "
      f"{advice}. Last words:\n" + "\n".join(words)
    )

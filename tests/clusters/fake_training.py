"""A training without JAX: it writes down how it was started, and ends as told.

The last argument names a folder. Each process appends its arguments there, and
then does what `plan.json` says for (start, process): "exit N", "kill", or
"hang", which SIGTERM ends with exit code 42.
"""

import json
import os
import pathlib
import signal
import sys
import time


def argument(name: str) -> str | None:
  found = [a for a in sys.argv if a.startswith(f"--{name}=")]
  return found[-1].partition("=")[2] if found else None


def leave(*_):
  print("saved", flush=True)
  os._exit(42)


def started(folder: pathlib.Path, process: str | int) -> int:
  """Counts a process's starts that are written down."""
  lines = folder / f"starts_{process}"
  return len(lines.read_text().splitlines()) if lines.exists() else 0


def wait_for_all(folder: pathlib.Path, starts: int):
  """Waits until every process of a local run has written down this start."""
  for n in range(int(argument("num_processes") or 0)):
    while started(folder, n) <= starts:
      time.sleep(0.05)


def main():
  signal.signal(signal.SIGTERM, leave)
  folder = pathlib.Path(argument("workdir"))
  process = argument("process_id") or os.environ.get("SLURM_PROCID", "0")
  starts = started(folder, process)
  with (folder / f"starts_{process}").open("a") as file:
    file.write(f"{' '.join(sys.argv[1:])} in {os.getcwd()}\n")
  plan = json.loads((folder / "plan.json").read_text())
  now = plan[min(starts, len(plan) - 1)]
  now_does = now.get(process, now["others"])
  action, _, code = now_does.partition(" ")
  print(f"process {process}, start {starts}: {now_does}", flush=True)
  if action == "kill":
    wait_for_all(folder, starts)
    os.kill(os.getpid(), signal.SIGKILL)
  while action == "hang":
    time.sleep(0.05)
  sys.exit(int(code))


if __name__ == "__main__":
  main()

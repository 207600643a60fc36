"""The tabletop's seen tasks, by one policy in three ways of running it.

  python -m tests.serving.closed_loop --run=runs/quickstart/run --trials=60

direct: launch/rollout.py calls the policy in its own process.
served: launch/rollout.py asks launch/serve.py, many trials at once.
loop: launch/robot.py drives one trial after the other through launch/serve.py,
  in real time, as it would drive a robot.
waiting: likewise with --wait.

Prints a JSON object for each, with Wilson's 95% interval of its success. Passes
are those of the decoder over an answer, on average.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.conftest import ROOT

SIZE = 64  # pixels a side
FAMILIES = ("move_to",)
CONCEPTS = "data/mini_concepts.flags"
NUM_ENVS = 16
_SHOWN = ("n", "successes", "rate", "interval", "outcomes")


def start(*command: str) -> str:
  """Runs a program; returns what it printed."""
  done = subprocess.run(
    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
  return done.stdout


@contextlib.contextmanager
def serving(run: str, *flags: str) -> Iterator[str]:
  """Starts launch/serve.py on a free port; yields its address.

  It ends at SIGTERM, cleanly.
  """
  program = sys.executable, "launch/serve.py", f"--checkpoint={run}"
  process = subprocess.Popen(
    [*program, "--port=0", *flags],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  lines = iter(process.stdout.readline, "")
  ready = next((line for line in lines if line.startswith("ready: ")), None)
  assert ready, process.stderr.read()[-2000:]
  try:
    yield ready.removeprefix("ready: ").strip()
  finally:
    process.terminate()
    said, errors = process.communicate(timeout=30)
  assert process.returncode == 0 and "stopped" in said and not errors, errors


def rollout(policy: str, trials: int, execute: int) -> dict[str, Any]:
  """Tries a policy by launch/rollout.py; returns the suite's numbers."""
  with tempfile.TemporaryDirectory() as folder:
    start(
      *("launch/rollout.py", f"--policy={policy}", f"--output={folder}"),
      *(f"--flagfile={CONCEPTS}", f"--families={','.join(FAMILIES)}"),
      *(f"--image_size={SIZE}", f"--num_envs={NUM_ENVS}", "--films=0"),
      *("--suites=seen", f"--episodes={trials}", f"--execute={execute}"),
    )
    (file,) = pathlib.Path(folder).glob("*.json")
    return json.loads(file.read_text())["suites"]["seen"]


def loop(
  address: str, trials: int, execute: int, rate_hz: float, *flags: str
) -> dict[str, Any]:
  """Drives the same trials by launch/robot.py."""
  concepts = (ROOT / CONCEPTS).read_text().partition("--concepts=")[2]
  tabletop = {
    "image_size": SIZE,
    "families": FAMILIES,
    "concepts": concepts.strip().split(","),
  }
  said = start(
    *("launch/robot.py", f"--server={address}", "--robot=tabletop"),
    *(f"--tabletop={json.dumps(tabletop)}", "--suites=seen"),
    *(f"--episodes={trials}", f"--execute={execute}", f"--rate_hz={rate_hz}"),
    *("--timeout_s=20", *flags),
  )
  return json.loads(said.splitlines()[-1])


class Passes:
  """Reads how many passes a service's answers took since the last reading."""

  def __init__(self, address: str):
    self._url = address.replace("ws://", "http://") + "/metrics"
    self._before = self._read()

  def mean(self) -> float:
    before, self._before = self._before, self._read()
    total, count = (self._before[i] - before[i] for i in (0, 1))
    return round(total / count, 2)

  def _read(self) -> tuple[float, float]:
    with urllib.request.urlopen(self._url) as answer:
      lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
    names = "rt2_passes_sum", "rt2_passes_count"
    return tuple(float(values[name]) for name in names)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--run", required=True)
  parser.add_argument("--execute", type=int, default=1)
  parser.add_argument("--trials", type=int, default=60)
  parser.add_argument("--rate_hz", type=float, default=25.0)
  args = parser.parse_args()
  how = {"run": pathlib.Path(args.run).name, "execute": args.execute}

  def say(way: str, numbers: dict[str, Any], **more: Any) -> None:
    shown = {name: numbers[name] for name in _SHOWN}
    print(json.dumps({"way": way} | how | more | shown), flush=True)

  sizes = f"--camera_sizes={SIZE}x{SIZE}", f"--batch_sizes=1,{NUM_ENVS}"
  with serving(args.run, *sizes) as address:
    with urllib.request.urlopen(
      address.replace("ws://", "http://") + "/metadata"
    ) as answer:
      how["horizon"] = json.load(answer)["action_horizon"]
    say("direct", rollout(args.run, args.trials, args.execute))
    passes = Passes(address)
    say("served", rollout(address, args.trials, args.execute))
    passes.mean()
    for way, flags in (("loop", ()), ("waiting", ("--wait",))):
      asked = args.trials, args.execute, args.rate_hz
      driven = loop(address, *asked, *flags)
      say(way, driven, rate_hz=args.rate_hz, passes=passes.mean())


if __name__ == "__main__":
  main()

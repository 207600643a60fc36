"""A week on a pod in minutes: several processes, one bucket, and misfortune.

  python -m tests.rehearsal --num_processes=4 --num_faults=5

Data, tokenizer, kept index and workdir lie on a real Google Cloud Storage
server. One process after the other is killed, terminated or stopped for a
while, a checkpoint is truncated in the bucket, and the server answers 503 for a
while. The parameters and every logged loss must be those of an undisturbed run
on local disks, bit for bit: no batch is trained twice or left out.
"""

import argparse
import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Self

import jax
import numpy as np
from tensorboard.backend.event_processing import event_accumulator

from rt2_jax import local_copies, storage
from rt2_jax.checkpoint import Checkpoints
from tests import gcs, tiny_datasets
from tests.conftest import QUICK_COMPILATION, ROOT

SAVED_EVERY = 3
_FLAGS = {
  "model.img": "micro/16",
  "model.llm": "gemma_micro",
  "model.image_size": 32,
  "optimizer.warmup_steps": 2,
  "mesh.model": 1,
  "batch_size": 8,
  "log_every": 1,
  "checkpoint_every": SAVED_EVERY,
}
_LONGEST_S = 900.0  # without a word, on a machine that is busy
_LOOK_S = 0.1
_GRACE_S = 30.0  # between a cluster's SIGTERM and its SIGKILL


class Pod:
  """Processes that train together, each with one device."""

  def __init__(self, home: str, logs: pathlib.Path, count: int, steps: int):
    """Starts them.

    Args:
      home: holds all that they read and write.
      logs: gets what each of them says.
      count: how many there are.
      steps: to train.
    """
    port = gcs.free_port()
    logs.mkdir()
    self.logs = [logs / str(i) for i in range(count)]
    self.steps = steps
    flags = _FLAGS | {
      "tokenizer_file": f"{home}/tokenizer.model",
      "sources.bridge.path": f"{home}/bridge/1.0.0",
      "loader.index_folder": f"{home}/index",
      "mesh.fsdp": count,
      "num_steps": steps,
    }
    self.processes = [
      subprocess.Popen(
        [
          *(sys.executable, "launch/train.py", "--multihost"),
          "--config=configs/bridge_debug.py",
          f"--workdir={home}/run",
          *(f"--config.{name}={value}" for name, value in flags.items()),
          f"--coordinator=127.0.0.1:{port}",
          f"--num_processes={count}",
          f"--process_id={i}",
        ],
        cwd=ROOT,
        env=_environment(logs.parent / "programs"),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
      )
      for i, log in enumerate(self.logs)
    ]

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_):
    """Leaves no process behind, also after an error."""
    self.end(0.0)

  def said(self) -> str:
    """Returns what all of them have said."""
    return "\n".join(log.read_text() for log in self.logs)

  def step(self) -> int:
    """Returns the last step that was logged; 0 for none."""
    found = re.findall(rf"step (\d+)/{self.steps} ", self.logs[0].read_text())
    return int(found[-1]) if found else 0

  def await_steps(self, count: int):
    """Returns when `count` steps more were logged, or all are done."""
    first, heard, said_at = 0, 0, time.monotonic()
    while True:
      now, said = self.step(), self.said()
      first = first or now
      ended = [p.poll() for p in self.processes]
      if all(code == 0 for code in ended):
        return
      if now and now >= min(first + count, self.steps):
        return
      if len(said) != heard:
        heard, said_at = len(said), time.monotonic()
      goes_on = not any(ended) and time.monotonic() < said_at + _LONGEST_S
      assert goes_on, f"{ended}\n{said}"
      time.sleep(_LOOK_S)

  def finish(self):
    """Waits for a good end of all."""
    self.await_steps(self.steps)
    for process in self.processes:
      assert process.wait(timeout=_LONGEST_S) == 0, self.said()

  def end(self, patience_s: float):
    """Waits for the others as long as a cluster does; kills what is left."""
    deadline = time.monotonic() + patience_s
    for process in self.processes:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=max(deadline - time.monotonic(), 0.01))
      process.kill()
      process.wait()


def _environment(programs: pathlib.Path) -> dict[str, str]:
  """Variables of a process; `programs` keeps what the first start compiles."""
  return (
    {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    | os.environ
    | {
      "PYTHONPATH": str(ROOT),
      "PYTHONUNBUFFERED": "1",
      "JAX_PLATFORMS": "cpu",
      # Without the fake devices of the tests' own process.
      "XLA_FLAGS": QUICK_COMPILATION,
      # Processes that wait for each other must all compile, or none.
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
  )


def fill(home: storage.Path, made: pathlib.Path):
  """Writes data and tokenizer."""
  tiny_datasets.bridge_source(made / "bridge/1.0.0")
  storage.output_folder(home, "home")
  local_copies.publish(made / "bridge", home / "bridge")
  tokenizer = (ROOT / "data/small_tokenizer.model").read_bytes()
  storage.write(home / "tokenizer.model", tokenizer)


def await_another_checkpoint(pod: Pod, workdir: storage.Url):
  """Returns when one would be left if the newest were damaged."""
  while len(Checkpoints(workdir / "checkpoints").steps()) < 2:
    pod.await_steps(1)


def truncate_newest(workdir: storage.Url) -> int:
  """Cuts the largest object of the newest checkpoint; returns its step."""
  step = Checkpoints(workdir / "checkpoints").latest_step()
  objects = storage.file_system(workdir).find(
    f"{workdir}/checkpoints/{step}/params", detail=True
  )
  largest = max(objects.values(), key=lambda each: each["size"])
  path = storage.locate(f"gs://{largest['name']}", "a checkpoint's object")
  storage.write(path, path.read_bytes()[: largest["size"] // 2])
  return step


def final(workdir: storage.Path) -> dict:
  """Returns the last parameters, and the losses by step as they are logged."""
  with contextlib.closing(Checkpoints.open_run(workdir)) as checkpoints:
    params = checkpoints.restore_params(checkpoints.stored_params())
  with local_copies.of(workdir / "tensorboard") as folder:
    log = event_accumulator.EventAccumulator(str(folder)).Reload()
    losses = [(e.step, e.value) for e in log.Scalars("train/loss")]
  return {"params": params, "losses": losses}


def disturb(
  pod: Pod, fault: str, victim: int, proxy: gcs.Proxy, workdir: storage.Url
) -> bool:
  """Plays a misfortune; returns whether the processes must be started again."""
  if fault.startswith("503"):
    with proxy.refusing():
      time.sleep(float(fault.removeprefix("503x")))
    return False
  name, _, truncated = fault.partition("+")
  pod.processes[victim].send_signal(signal.Signals[name])
  if name == "SIGSTOP":
    time.sleep(5)
    pod.processes[victim].send_signal(signal.SIGCONT)
    return False
  # A cluster gives the others a moment to save after a SIGTERM.
  pod.end(_GRACE_S if name == "SIGTERM" else 1.0)
  if truncated:
    truncate_newest(workdir)
  return True


def rehearse(
  folder: pathlib.Path,
  num_processes: int,
  num_steps: int,
  faults: Sequence[str],
  seed: int,
) -> Iterator[str]:
  """Runs undisturbed on local disks, then disturbed in a bucket; compares.

  Args:
    folder: for the local run, and what all processes say.
    num_processes: that train together.
    num_steps: of training.
    faults: in their order; see `draw_faults`.
    seed: of who is hit, and when.

  Yields:
    What happens, line by line.

  Raises:
    AssertionError: another end.
  """
  dice = random.Random(seed)
  local = folder / "home"
  fill(local, folder / "made")
  began = time.monotonic()
  with Pod(str(local), folder / "local", num_processes, num_steps) as pod:
    pod.finish()
  expected = final(local / "run")
  yield f"undisturbed, local: {time.monotonic() - began:.0f} s"
  with gcs.behind_proxy("pod") as (bucket, proxy), contextlib.ExitStack() as on:
    home = bucket / "home"
    fill(home, folder / "made_again")

    def start(number):
      pod = Pod(str(home), folder / str(number), num_processes, num_steps)
      return on.enter_context(pod)

    runs = [start(0)]
    for fault in faults:
      # Late enough for a checkpoint more.
      runs[-1].await_steps(dice.randint(SAVED_EVERY, 2 * SAVED_EVERY))
      if "truncate" in fault:
        await_another_checkpoint(runs[-1], home / "run")
      victim, at = dice.randrange(num_processes), runs[-1].step()
      if disturb(runs[-1], fault, victim, proxy, home / "run"):
        runs.append(start(len(runs)))
      yield f"{fault}, process {victim}, step {at}"
    runs[-1].finish()
    got = final(home / "run")
  damaged = sum("which is damaged" in run.said() for run in runs)
  assert damaged == sum("truncate" in fault for fault in faults)
  jax.tree.map(np.testing.assert_array_equal, got["params"], expected["params"])
  assert got["losses"] == expected["losses"]
  assert [step for step, _ in got["losses"]] == [*range(1, num_steps + 1)]
  yield f"{len(runs)} starts, {time.monotonic() - began:.0f} s: identical"


def draw_faults(count: int, seed: int) -> list[str]:
  """Draws signals, each at least once, and puts the other misfortunes between.

  Returns:
    `count` signals. After "SIGKILL+truncate" the newest checkpoint is cut in
    the bucket before the next start. "503x10" is for 10 s the store's answer.
  """
  dice = random.Random(seed)
  signals = ["SIGKILL", "SIGTERM", "SIGSTOP"]
  faults = [*signals, *dice.choices(signals, k=max(count - 3, 0))]
  dice.shuffle(faults)
  faults[faults.index("SIGKILL")] += "+truncate"
  faults.insert(dice.randint(1, count), "503x10")
  return faults


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--num_processes", type=int, default=4)
  parser.add_argument("--num_faults", type=int, default=5)
  parser.add_argument("--num_steps", type=int, default=60)
  parser.add_argument("--seed", type=int, default=int(time.time()))
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  faults = draw_faults(args.num_faults, args.seed)
  print(f"seed {args.seed}: {', '.join(faults)}", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    told = rehearse(
      pathlib.Path(folder),
      args.num_processes,
      args.num_steps,
      faults,
      args.seed,
    )
    for line in told:
      print(line, flush=True)


if __name__ == "__main__":
  main()

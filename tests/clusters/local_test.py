"""Real processes on this machine, with a training that needs no JAX."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from rt2_jax.clusters import restarts
from rt2_jax.clusters.local import Local
from rt2_jax.errors import UserError
from tests.clusters.conftest import starts
from tests.conftest import ROOT


@pytest.fixture
def said():
  return []


@pytest.fixture
def local(tmp_path, said):
  cluster = Local(
    tmp_path / "pods/run", num_processes=3, grace_s=20, say=said.append
  )
  yield cluster
  cluster.stop()


def run(local, job, said) -> list[float]:
  """Runs a job to its end; returns the pauses before its restarts."""
  pauses = []
  restarts.run(local, job, said.append, pauses.append)
  return pauses


def test_preempted_and_killed_starts_are_followed_by_others(
  local, make_job, said
):
  job = make_job(
    {"others": "exit 42"},
    {"1": "kill", "others": "hang"},  # the others would hang for ever
    {"others": "exit 0"},
  )
  assert len(run(local, job, said)) == 2
  assert [len(starts(job, n)) for n in range(3)] == [3] * 3
  assert "run: preempted (exit code 42, see its log)" in said
  assert "run: lost (killed: process 1 by signal 9)" in said
  assert said[-1] == "run: done after 2 restarts"
  # The log of process 0, once.
  assert said.count("process 0, start 2: exit 0") == 1


def test_processes_find_each_other_and_run_the_commit(local, make_job, said):
  job = make_job({"others": "exit 0"})
  (job.code.repository / "train.py").write_text("raise SystemExit(7)")
  run(local, job, said)
  found = [starts(job, n)[0] for n in range(3)]
  for n, line in enumerate(found):
    assert line.startswith("--config=x y.py --workdir=")
    assert "--multihost --coordinator=localhost:" in line
    assert f"--num_processes=3 --process_id={n} in " in line
    assert line.endswith(str(local.folder / "code"))
  assert len({re.search(r"localhost:\d+", line)[0] for line in found}) == 1


def test_an_error_of_the_training_is_shown_and_not_repeated(
  local, make_job, said
):
  job = make_job({"2": "exit 1", "others": "hang"})
  local.grace_s = 0.5
  with pytest.raises(
    UserError, match=r"code 1 from process 2,[^$]*\nprocess 2, start 0: exit 1"
  ):
    run(local, job, said)
  assert len(starts(job, 0)) == 1


def test_restarts_have_a_limit(local, make_job, said):
  job = make_job({"others": "exit 42"}, max_restarts=2)
  with pytest.raises(UserError, match=r"preempted.* after 2 restarts,"):
    run(local, job, said)
  assert len(starts(job, 0)) == 3


def when(condition, timeout: float = 30):
  deadline = time.monotonic() + timeout
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def stop_elsewhere(local):
  """In another process, as another terminal would."""
  program = (
    "import pathlib, sys; from rt2_jax.clusters.local import Local; "
    "Local(pathlib.Path(sys.argv[1]), 0).stop()"
  )
  command = [sys.executable, "-c", program, str(local.folder)]
  subprocess.run(command, cwd=ROOT, check=True)


def test_stop_in_another_terminal_ends_the_run(local, make_job, said):
  job = make_job({"others": "hang"})
  other = Local(local.folder, 3, say=said.append)

  def stop():
    when(lambda: all(starts(job, n) for n in range(3)))
    with pytest.raises(UserError, match="run 'run', whose processes still run"):
      other.start(job)
    assert other.status().count("runs: process") == 3
    stop_elsewhere(local)

  thread = threading.Thread(target=stop)
  thread.start()
  run(local, job, said)
  thread.join()
  assert said[-2:] == ["saved", "run: stopped"]
  assert other.status().count("has ended: ") == 3
  other.logs()
  assert sum(line.startswith("== process") for line in said) == 3


def test_stop_between_two_starts_ends_the_run(local, make_job, said):
  job = make_job({"others": "exit 42"})
  restarts.run(local, job, said.append, lambda _: stop_elsewhere(local))
  assert said[-1] == "run: stopped"
  assert len(starts(job, 0)) == 1


def test_ctrl_c_lets_the_processes_save(local, make_job, said):
  job = make_job({"others": "hang"})

  def interrupt():
    when(lambda: all(starts(job, n) for n in range(3)))
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  run(local, job, said)
  assert said[-2:] == ["saved", "run: stopped"]


def test_delete_leaves_nothing(local, make_job):
  local.start(make_job({"others": "hang"}))
  processes = local.processes()
  assert len(processes) == 3
  local.delete()
  assert not local.folder.exists()
  assert not any(process.is_running() for process in processes)


def test_a_dry_run_prints_and_does_nothing(local, make_job, said):
  local.dry_run = True
  for method in (local.create, local.stop, local.delete):
    method()
  local.start(make_job({"others": "exit 0"}))
  ship, *commands = said[3:]
  assert ship.startswith("git archive ")
  assert len(commands) == 3 and "--process_id=2" in commands[2]
  assert "'--config=x y.py'" in commands[0]  # as a shell takes it
  assert not local.folder.exists()

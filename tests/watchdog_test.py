"""The watchdog: who is lost, who is behind, and when nothing is wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from rt2_jax import watchdog
from rt2_jax.errors import START_AGAIN
from rt2_jax.watchdog import Watchdog, WatchdogConfig
from tests.conftest import ROOT
from tests.gcs import free_port

QUICK = WatchdogConfig(stalled_s=0.3, lost_s=0.3)


class Service:
  """JAX's key-value service with one more process, which may fall silent."""

  def __init__(self, beats: int, silent: bool):
    self.values = {}
    self._beats, self._silent, self._reads = beats, silent, 0

  def key_value_set(self, key, value, allow_overwrite):
    assert allow_overwrite
    self.values[key] = value

  def key_value_dir_get(self, folder):
    self._reads += not self._silent
    other = json.dumps(["host-7", self._beats, "step 5", self._reads])
    return [*self.values.items(), (f"{folder}/1", other)]


PROGRAM = """
import sys, time
from rt2_jax import hosts
from rt2_jax.watchdog import Watchdog, WatchdogConfig
hosts.join(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]), 60)
with Watchdog(WatchdogConfig(lost_s=2.0)) as dog:
  dog.at("step 5")
  time.sleep(2)
  print("ready", flush=True)
  time.sleep(60)
"""


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_host_that_hangs_is_named_by_the_other(stopped):
  """Real processes; process 0 serves what all of them say."""
  port = str(free_port())
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, str(i), port],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  assert [p.stdout.readline() for p in processes] == ["ready\n"] * 2
  processes[stopped].send_signal(signal.SIGSTOP)
  other = processes[1 - stopped]
  _, text = other.communicate(timeout=50)
  processes[stopped].kill()
  processes[stopped].communicate()
  assert other.returncode == START_AGAIN, text
  assert f"watchdog: process {stopped} is lost" in text
  assert socket.gethostname() in text and "File" in text  # a stack


@pytest.fixture
def watch(monkeypatch, capfd):
  """Runs a watchdog; returns its exit codes and what it wrote."""

  def run(config, service, work, seconds):
    monkeypatch.setattr(watchdog.distributed.global_state, "client", service)
    codes = []
    with Watchdog(config, codes.append) as dog:
      work(dog)
      deadline = time.monotonic() + seconds
      while time.monotonic() < deadline and not codes:
        time.sleep(0.02)
        if work is busy:
          dog.at("step")
    return codes, capfd.readouterr().err

  return run


def busy(dog):
  dog.at("step 6")


def idle(dog):
  dog.at("compiling")


def patient(dog):
  dog.at("opening the data", patient=True)


def test_a_run_that_stalls_shows_its_stack(watch):
  codes, text = watch(QUICK, None, idle, 5)
  assert codes == [START_AGAIN]
  assert "no progress" in text and "'compiling'" in text
  assert "watchdog_test.py" in text  # a frame of the main thread


def test_a_process_that_is_behind_is_named(watch):
  config = WatchdogConfig(stalled_s=0.3, lost_s=60)
  codes, text = watch(config, Service(0, silent=False), idle, 5)
  assert codes == [START_AGAIN]
  assert "process 1 is behind on host host-7, last seen at 'step 5'" in text


def test_a_lost_process_is_named_while_the_main_thread_works(watch):
  codes, text = watch(QUICK, Service(0, silent=True), busy, 5)
  assert codes == [START_AGAIN]
  assert "process 1 is lost" in text and "on host host-7" in text


@pytest.mark.parametrize("work", [busy, patient])
def test_a_healthy_run_is_left_alone(watch, work):
  service = Service(2, silent=False)
  assert watch(QUICK, service, work, 0.8) == ([], "")


@pytest.mark.parametrize("silent", [True, False])
def test_a_broken_connection_is_explained(monkeypatch, capfd, silent):
  """By the process that is lost; a healthy one is no explanation."""
  client = Service(2, silent)
  monkeypatch.setattr(watchdog.distributed.global_state, "client", client)
  monkeypatch.setattr(watchdog.jax, "process_count", lambda: 2)
  codes = []
  with pytest.raises(jax.errors.JaxRuntimeError), Watchdog(QUICK, codes.append):
    raise jax.errors.JaxRuntimeError("connection closed by peer")
  text = capfd.readouterr().err
  assert "connection closed by peer" in text
  assert codes == ([START_AGAIN] if silent else [])
  assert ("process 1 is lost" in text) == silent

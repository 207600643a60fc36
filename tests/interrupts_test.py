"""Signals: a run is asked to stop, and stops when its work is whole."""

import os
import signal
import subprocess
import sys

from rt2_jax.interrupts import StopSignals, delayed
from tests.conftest import ROOT


def test_a_signal_is_noted_and_nothing_is_interrupted():
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  for number in (signal.SIGTERM, signal.SIGINT):
    with StopSignals() as stop:
      assert not stop.reached(1)
      with delayed("saving"):
        os.kill(os.getpid(), number)
      assert stop.reached(2) and stop.reached(3)
  after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  assert after == before


def test_a_second_ctrl_c_leaves_at_once():
  program = """
import os, signal, time
from rt2_jax.interrupts import StopSignals
with StopSignals() as stop:
  os.kill(os.getpid(), signal.SIGTERM)
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(60)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=50
  )
  assert done.returncode == 130
  assert b"Traceback" not in done.stderr and b"at once" in done.stderr

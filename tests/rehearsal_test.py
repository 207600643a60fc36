"""The rehearsal in short; `make rehearsal` is the whole."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_two_processes_and_two_misfortunes_in_a_bucket():
  done = subprocess.run(
    [
      *(sys.executable, "-m", "tests.rehearsal", "--num_processes=2"),
      *("--faults=SIGKILL+truncate,503x3", "--num_steps=14", "--seed=0"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "2 starts" in done.stdout and done.stdout.endswith("identical\n")

"""Two real processes compare what they hold."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from rt2_jax import consensus
from rt2_jax.errors import UserError
from tests.conftest import ROOT
from tests.gcs import free_port

# Each case's outcome on this process, one after the other in one start.
PROGRAM = """
import json, pathlib, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
from rt2_jax import consensus, hosts
me, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
hosts.join(f"localhost:{port}", 2, me, 60)

def outcome(call, *args):
  try:
    return call(*args)
  except Exception as error:
    return f"{type(error).__name__}: {error}"

def fails(kind):
  with consensus.together():
    if me == 1:
      raise kind("the disk of one host")

same = {"config": {"seed": 0, "mesh": {"data": 2}}, "data": {"a": 5}}
other = {"config": {"seed": me, "mesh": {"data": 2}}, "data": {"a": 5 + me}}
more = same | {"extra.dotted": 1} if me else same
from rt2_jax.errors import UserError
print(json.dumps({
  "gather": outcome(consensus.gather, "x" * (1 + 30 * me) + "é"),
  "same": outcome(consensus.check_equal, same),
  "other": outcome(consensus.check_equal, other),
  "more": outcome(consensus.check_equal, more),
  "user": outcome(fails, UserError),
  "bug": outcome(fails, KeyError),
  "shared": outcome(consensus.check_shared, folder / "new" / "run", 5),
  "apart": outcome(consensus.check_shared, folder / str(me) / "run", 1),
}), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """What each of two processes met, and what they left behind."""
  folder = tmp_path_factory.mktemp("consensus")
  port = free_port()
  environment = os.environ | {"XLA_FLAGS": ""}
  command = [sys.executable, "-c", PROGRAM]
  processes = [
    subprocess.Popen(
      [*command, str(i), str(port), str(folder)],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  outs = [process.communicate(timeout=120) for process in processes]
  assert all(process.returncode == 0 for process in processes), outs
  results = [json.loads(out.splitlines()[-1]) for out, _ in outs]
  return results, sorted(p.name for p in pathlib.Path(folder).iterdir())


def test_every_process_gets_every_text(outcomes):
  for result in outcomes[0]:
    assert result["gather"] == ["xé", "x" * 31 + "é"]


def test_a_difference_is_named_on_both_sides(outcomes):
  for result in outcomes[0]:
    assert result["same"] is None
    for part in (
      "config.seed is 0 on process 0, 1 on process 1",
      "data.a is 5 on process 0, 6 on process 1",
    ):
      assert part in result["other"]
    assert "extra.dotted is None on process 0, 1 on process" in result["more"]


def test_an_error_on_one_ends_both(outcomes):
  first, second = outcomes[0]
  message = "UserError: process 1: the disk of one host"
  assert first["user"] == second["user"] == message
  assert (
    first["bug"] == "UserError: process 1: KeyError: 'the disk of one host'"
  )
  assert second["bug"] == "KeyError: 'the disk of one host'"  # its traceback


def test_a_folder_that_is_not_shared_is_found(outcomes):
  results, left = outcomes
  for result in results:
    assert result["shared"] is None
    assert "process 1: does not see it" in result["apart"]
    assert "0/run" in result["apart"] or "1/run" in result["apart"]
  assert left == ["new"]  # what was made for the question is gone


def test_one_process_asks_nobody(tmp_path):
  consensus.check_equal({"seed": 0})
  consensus.check_shared(tmp_path / "run")
  assert not (tmp_path / "run").exists()
  with pytest.raises(UserError, match="^mine$"), consensus.together():
    raise UserError("mine")


def test_the_code_is_named_by_its_content():
  assert consensus.code() == consensus.code()
  assert {"rt2_jax", "jax", "numpy"} <= consensus.code().keys()

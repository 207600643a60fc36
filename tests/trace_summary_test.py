"""A real trace of a few steps on this machine's CPU, and self times by hand."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from rt2_jax import trace_summary
from rt2_jax.errors import UserError
from rt2_jax.profiling import Profiler
from rt2_jax.speed import Clock
from rt2_jax.trace_summary import Event
from tests.conftest import ROOT


def test_a_trace_tells_where_a_step_goes(tmp_path):
  multiply = jax.jit(lambda x: jnp.tanh(x @ x))
  result = multiply(jnp.ones((700, 700)))
  clock = Clock(0, {}, 0.0)
  began = {}

  def batches():
    for step in range(1, 8):
      time.sleep(0.02)
      yield step

  with Profiler(tmp_path / "tensorboard", range(2, 7)) as profiler:
    for step in clock.inputs(batches()):
      began[step] = time.monotonic()
      with profiler.step(step, result):
        result = multiply(result)
  found = trace_summary.summarize(trace_summary.newest_trace(tmp_path))
  assert found.steps == 5
  assert found.step_s == pytest.approx((began[7] - began[2]) / 5, rel=0.1)
  assert 0.02 <= found.input_s < found.step_s
  total = sum(op.seconds for op in found.ops) + found.idle_s
  assert total == pytest.approx(found.step_s)
  assert found.ops[0].count == 1 and found.ops[0].seconds > 1e-4
  page = tmp_path / "page.html"
  command = [sys.executable, "launch/profile_summary.py"]
  command += [f"--workdir={tmp_path}", f"--output={page}"]
  printed = subprocess.run(
    command, cwd=ROOT, check=True, capture_output=True, text=True
  ).stdout
  assert "\n".join(found.lines(10)) in printed
  text = page.read_text()
  assert str(tmp_path) in text and "viewport" in text
  assert all(f"<code>{op.name}</code>" in text for op in found.ops)
  assert f"{1e3 * found.step_s:.2f} ms a step" in text
  lines = found.lines(1)
  assert found.ops[0].name in lines[2] and "a step" in lines[-1]


def test_a_run_that_goes_on_within_the_steps_says_that_it_traces_none(
  tmp_path, caplog
):
  with Profiler(tmp_path, range(2, 7), start=1):
    assert not caplog.text
  with Profiler(tmp_path, range(2, 7), start=2) as profiler:
    assert "step 2" in caplog.text and "nothing is traced" in caplog.text
    for step in range(3, 9):
      with profiler.step(step, ()):
        pass
  assert not list(tmp_path.iterdir())


def test_no_trace(tmp_path):
  with pytest.raises(UserError, match="holds no trace"):
    trace_summary.newest_trace(tmp_path)


def test_nested_operations_count_once():
  events = [
    Event("while", 0, 10),
    Event("dot", 1, 4),
    Event("add", 2, 3),
    Event("dot", 5, 9),
    Event("copy", 20, 24),
    Event("send", 22, 30),  # overlaps
  ]
  seconds, counts = trace_summary._self_times(events)
  assert sum(seconds.values()) == 10 + 10  # the time in which anything ran
  assert (seconds["while"], seconds["dot"], seconds["add"]) == (3, 6, 1)
  assert seconds["copy"] + seconds["send"] == 10
  assert counts["dot"] == 2

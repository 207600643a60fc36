"""Where the time of a run goes, on a clock of the test's own."""

import pytest

from rt2_jax import speed
from rt2_jax.errors import UserError
from rt2_jax.profiling import parse_steps
from rt2_jax.speed import Clock


@pytest.fixture
def now(monkeypatch):
  """Seconds; both clocks of the system read it."""
  seconds = [100.0]
  monkeypatch.setattr(speed.time, "monotonic", lambda: seconds[0])
  monkeypatch.setattr(speed.time, "time", lambda: seconds[0])
  return seconds


def steps(clock, now, count, input_s=1.0, device_s=2.0, host_s=1.0):
  def batches():
    for batch in range(count):
      now[0] += input_s
      yield batch

  for _ in clock.inputs(batches()):
    now[0] += host_s
    with clock.spent_on("device"):
      now[0] += device_s


def test_a_step_is_input_host_and_device(now):
  clock = Clock(0, {}, mfu_at_one_step_per_s=2.0)
  now[0] += 50  # compiles
  clock.compiled(1, ())
  steps(clock, now, 10)
  with clock.spent_on("other"):
    now[0] += 10  # evaluates
  found = clock.take(11)
  assert found["step_s"] == found["steps_per_s"] ** -1 == 4.0
  assert (found["input_wait_s"], found["host_s"]) == (1.0, 1.0)
  assert (found["device_wait_s"], found["mfu"]) == (2.0, 0.5)
  assert found["goodput"] == pytest.approx(40 / 100)
  assert clock.take(11) == {}


def test_what_a_crash_loses_lowers_the_goodput(now):
  clock = Clock(0, {}, 0.0)
  clock.compiled(1, ())
  steps(clock, now, 10)
  kept = clock.kept
  steps(clock, now, 10)  # lost
  clock = Clock(10, kept, 0.0)
  clock.compiled(11, ())
  steps(clock, now, 10)
  found = clock.take(21)
  assert found["goodput"] == pytest.approx(2 / 3) and "mfu" not in found


def test_steps_to_trace():
  assert parse_steps("100:110") == range(100, 110)
  for text in ("100", "5:5", "0:3", "a:b", "3:-1"):
    with pytest.raises(UserError, match=f"got --profile_steps={text}, expect"):
      parse_steps(text)

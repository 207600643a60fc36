"""What robots measure of a service adds up."""

import pytest

from rt2_jax.benchmarks import service


def exchange(start, end, queue_ms, call_ms, infer_ms, passes):
  timing = {"queue_ms": queue_ms, "call_ms": call_ms, "infer_ms": infer_ms}
  return service.Exchange(start, end, timing | {"passes": passes})


def test_an_answer_is_the_sum_of_its_parts():
  row = service.summarize(
    robots=2,
    exchanges=[
      exchange(10.0, 10.02, 3.0, 8.0, 15.0, 1),
      exchange(10.0, 10.02, 3.0, 8.0, 15.0, 2),
      exchange(10.02, 10.04, 3.0, 8.0, 15.0, 3),
      exchange(10.02, 10.04, 3.0, 8.0, 15.0, 2),
    ],
  )
  medians = {part: ms["p50"] for part, ms in row["ms"].items()}
  assert medians.pop("answer") == pytest.approx(sum(medians.values()))
  assert medians == pytest.approx(
    {"network": 5.0, "read": 4.0, "queue": 3.0, "call": 8.0}
  )
  assert row["answers_per_s"] == 100.0 and row["hz"] == 50.0
  assert row["robots"] == row["passes"] == 2

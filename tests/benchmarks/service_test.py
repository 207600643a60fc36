"""What robots measure of a service adds up."""

import io

import pytest
from PIL import Image

from rt2_jax.benchmarks import service
from rt2_jax.benchmarks.frames import Shown
from tests.serving import served


def test_robots_are_served_at_once_and_measured(tokenizer):
  policy = served.MarkedPolicy(tokenizer)
  data = io.BytesIO()
  Image.fromarray(served.image(0)).save(data, "PNG")
  shown = [Shown({"primary": [data.getvalue()]}, "pick apple", None)] * 4
  one, two = service.measure(policy, shown, [1, 2], repeats=5)
  assert (one["robots"], two["robots"]) == (1, 2)
  for row in (one, two):
    assert row["passes"] == 1.0 and row["hz"] * row["robots"] > 0
    parts = row["ms"]
    assert list(parts) == ["network", "read", "queue", "call", "answer"]
    known = sum(parts[name]["p50"] for name in ("read", "queue", "call"))
    assert 0 < known < parts["answer"]["p99"]
  assert sorted(set(policy.rows)) == [1, 2]


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

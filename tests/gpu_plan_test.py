"""launch/gpu_plan.py without CUDA: this CPU stands for the H100."""

import jax
import pytest

from launch import gpu_check, gpu_plan
from rt2_jax.gpu import ahead_of_time
from rt2_jax.models.variants import REMAT


@pytest.fixture
def device(monkeypatch):
  monkeypatch.setattr(ahead_of_time, "compile_for_h100", lambda x: x.compile())
  return jax.devices()[0]


def test_what_is_planned_is_what_is_measured():
  assert gpu_plan.CONFIGS == gpu_check.CONFIGS


def test_a_step_that_keeps_more_needs_more(device, monkeypatch):
  monkeypatch.setattr(gpu_plan, "CONFIGS", {"tiny": "configs/rt1_debug.py"})
  found = {row["remat"]: row for row in gpu_plan.training_steps(device)}
  assert found.keys() == set(REMAT)
  assert len({row["config_hash"] for row in found.values()}) == len(REMAT)
  for each in ("planned_memory_gb", "estimated_memory_gb"):
    kept = [found[remat][each] for remat in ("full", "dots", "none")]
    assert 0 < kept[0] <= kept[1] <= kept[2]


def test_an_action_is_planned_for_one_robot_and_for_eight(device, monkeypatch):
  monkeypatch.setattr(gpu_plan, "_ACTING", "configs/rt1_debug.py")
  parts = [(row["part"], row["robots"]) for row in gpu_plan.actions(device)]
  assert parts == [("decode", 1), ("decode", 8), ("decode_int8", 1)]

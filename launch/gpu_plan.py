"""Compiles the one-GPU configs for an H100 that is not here; prints JSON.

  python launch/gpu_plan.py | tee runs/gpu_plans.jsonl    (or `make gpu-plans`)

Memory as XLA plans it: of each training step, with all that `model.remat` may
keep, beside the formula of `memory_estimate`; and of an action of a 3B policy.
Needs jax[cuda12], and no GPU; ten minutes on two cores.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import jax
from absl import app

from launch import config_file, program
from rt2_jax.gpu import ahead_of_time, memory_estimate
from rt2_jax.models.variants import REMAT
from rt2_jax.tpu import control_rate, train_step
from rt2_jax.tpu.ahead_of_time import planned_bytes
from rt2_jax.train_config import TrainConfig, config_hash

# As launch/gpu_check.py measures them.
CONFIGS = {
  "lora": "configs/rt2_paligemma_3b_lora.py",
  "full_24": "configs/rt2_paligemma_3b_one_gpu.py:24",
  "full_40": "configs/rt2_paligemma_3b_one_gpu.py:40",
  "full_80": "configs/rt2_paligemma_3b_one_gpu.py:80",
}
_ACTING = "configs/rt2_paligemma_3b_robot_only.py"
_LARGEST_GB = 80  # what is far beyond the card is not compiled


@program.main_on_devices
def main():
  device = ahead_of_time.h100()
  for row in itertools.chain(training_steps(device), actions(device)):
    print(json.dumps({"device": device.device_kind} | row), flush=True)


def training_steps(device: jax.Device) -> Iterator[dict[str, Any]]:
  """Plans the step of every config with every way of rematerialization."""
  for part, name in CONFIGS.items():
    for remat in REMAT:
      fields = config_file.read(name)
      fields["model"]["remat"] = remat
      config = TrainConfig.from_dict(fields)
      estimated = memory_estimate.of(config).total / 1e9
      if estimated > _LARGEST_GB:
        continue
      lowered, *_ = train_step.lower_train_step([device], config)
      yield {
        "part": part,
        "config": name,
        "config_hash": config_hash(fields),
        "remat": remat,
        "batch_size": config.batch_size,
        "planned_memory_gb": planned_gb(lowered),
        "estimated_memory_gb": round(estimated, 2),
      }


def actions(device: jax.Device) -> Iterator[dict[str, Any]]:
  """Plans one call of a policy."""
  fields = config_file.read(_ACTING)
  for robots, int8 in ((1, False), (8, False), (1, True)):
    lowered, *_ = control_rate.lower_action(
      [device], TrainConfig.from_dict(fields), robots, int8
    )
    yield {
      "part": "decode_int8" if int8 else "decode",
      "config": _ACTING,
      "config_hash": config_hash(fields),
      "robots": robots,
      "planned_memory_gb": planned_gb(lowered),
    }


def planned_gb(lowered: jax.stages.Lowered) -> float:
  compiled = ahead_of_time.compile_for_h100(lowered)
  return round(planned_bytes(compiled) / 1e9, 2)


if __name__ == "__main__":
  app.run(main)

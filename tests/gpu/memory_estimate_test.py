"""The formula, by hand and against XLA's plan; an H100's: gpu_card_test."""

import dataclasses

import jax
import pytest

from launch import config_file
from rt2_jax import sharding
from rt2_jax.gpu import memory_estimate
from rt2_jax.tpu import train_step
from rt2_jax.tpu.ahead_of_time import planned_bytes
from rt2_jax.train_config import TrainConfig

SMALL = {"img": "tiny/16", "llm": "gemma_tiny", "image_size": 64}
SMALL |= {"vocab_size": 3200, "dtype": "float32"}


def config(name: str, **changes) -> TrainConfig:
  fields = config_file.read(f"configs/{name}")
  for part, values in changes.items():
    merge = isinstance(values, dict)
    fields[part] = fields[part] | values if merge else values
  return TrainConfig.from_dict(fields)


def planned(changed: TrainConfig) -> float:
  """XLA's plan for one CPU device."""
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  trainer = changed.make_trainer(
    train_step.stand_in_action_tokenizers(changed), mesh
  )
  batch = train_step.abstract_batch(changed, mesh)
  return planned_bytes(trainer.lower_step(batch).compile())


@pytest.mark.parametrize("remat", ["full", "none"])
def test_the_plan_of_xla_for_a_cpu(remat):
  """XLA for CPU copies more, see the ratio; the order is the same."""
  small = config(
    "rt2_paligemma_3b_one_gpu.py:80", model=SMALL | {"remat": remat}
  )
  found = memory_estimate.of(small).total
  assert 0.5 < found / planned(small) < 1.1


def test_parameters_and_moments_are_exact():
  memory = memory_estimate.of(config("rt2_paligemma_3b_one_gpu.py:80"))
  assert memory.parameters == 4 * 2_923_335_408
  assert memory.optimizer == pytest.approx(8 * 2_923_335_408, abs=100)


def test_microbatches_keep_fewer_activations_and_a_sum_of_gradients():
  whole = config("rt2_paligemma_3b_one_gpu.py:80", model={"remat": "full"})
  parts = dataclasses.replace(whole, microbatches=4)
  stages = [memory_estimate.of(c).stages for c in (whole, parts)]
  logits = 3 * 4 * 32 * 32 * 257_152
  kept = 2 * 32 * (18 * 319 * 2048 + 27 * 256 * 1152)
  sums = 4 * 2_923_335_408
  saved = stages[0]["logits"] - (stages[1]["logits"] - sums)
  assert saved == pytest.approx(0.75 * (logits + kept))


def test_a_running_mean_is_kept_of_what_trains():
  name, decay = "rt2_paligemma_3b_lora.py", {"ema_decay": 0.99}
  plain = config(name)
  mean = dataclasses.replace(
    plain, optimizer=dataclasses.replace(plain.optimizer, **decay)
  )
  sizes = [memory_estimate.of(c).optimizer for c in (plain, mean)]
  # Two moments of the adapters in float32, and a third array as large.
  assert sizes[1] == pytest.approx(1.5 * sizes[0], abs=100)


def test_nothing_is_kept_of_a_frozen_encoder():
  full = {"remat": "full"}
  frozen = config("rt2_paligemma_3b_lora.py", model=full)
  size = frozen.batch_size * 256 * 1152 * 2
  targets = {"lora_targets": ("llm/layers/", "img/")}
  trains = config("rt2_paligemma_3b_lora.py", model=full | targets)
  more = (
    memory_estimate.of(trains).stages["logits"]
    - memory_estimate.of(frozen).stages["logits"]
  )
  assert more == 27 * size

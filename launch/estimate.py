"""Predicts memory and time of a config on a TPU slice or a GPU.

  python launch/estimate.py --config=configs/rt2_paligemma_3b.py
  python launch/estimate.py --config=configs/rt2_paligemma_3b.py \\
    --topology=v5e:16x16,v6e:16x16,v5p:8x8x8
  python launch/estimate.py --config=configs/rt2_paligemma_3b.py --sweep
  python launch/estimate.py --config=configs/rt2_paligemma_3b.py \\
    --topology=gpu:24GB
  python launch/estimate.py --config=configs/rt2_paligemma_3b.py \\
    --program=decode --topology=v5e:1x1,v6e:1x1 --mode=full

The training step, or one action of a policy on one chip, is compiled by the
TPU's own compiler (extra `estimate`), so memory is exact; times are
compiler-predicted, see `rt2_jax/tpu/hlo_cost.py`. --mode=fast takes seconds and
differs from --mode=full, which takes minutes, by a few percent for a training
step; for decoding use full. For one GPU the training step's memory alone is
estimated, by the formula of `rt2_jax/gpu/memory_estimate.py` and without
compiling; where a config does not fit, flags are named with which it would. No
data, tokenizer or weights are read.
"""

import dataclasses
import json
from collections.abc import Iterator

from absl import app, flags

from launch import experiment_flag, program
from rt2_jax.gpu import gpu_card
from rt2_jax.tpu import ahead_of_time, control_rate, train_step
from rt2_jax.tpu.chips import chip_of
from rt2_jax.tpu.control_rate import ControlRate
from rt2_jax.tpu.hlo_cost import Cost
from rt2_jax.tpu.train_step import Estimate
from rt2_jax.train_config import TrainConfig, config_hash

experiment_flag.define()
_PROGRAM = flags.DEFINE_enum(
  "program", "train", ["train", "decode"], "A training step, or one action."
)
_TOPOLOGY = flags.DEFINE_list(
  "topology",
  None,
  "Slices, e.g. v5e:16x16,v5p:8x8x8*2, or GPUs by their memory, e.g. "
  "gpu:24GB; default: the config's, for decode the smallest of that "
  "generation.",
)
_MESH = flags.DEFINE_string(
  "mesh", None, "slice x data x fsdp x model, e.g. 1x2x128x1; -1 chooses."
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size",
  None,
  "Of all chips; for decode robots that one call serves, default 1.",
  1,
)
_PASSES = flags.DEFINE_float(
  "passes",
  control_rate.PASSES,
  "For decode: passes over an action's tokens, on average; the first is within "
  "the prefill.",
  1.0,
)
_INT8 = flags.DEFINE_boolean(
  "int8", False, "For decode: matrices in 8 bits, as launch/serve.py --int8."
)
_MODE = flags.DEFINE_enum("mode", "fast", ahead_of_time.MODES, "See above.")
_SWEEP = flags.DEFINE_boolean(
  "sweep", False, "Try other meshes and batch sizes, print the best."
)
_JSON = flags.DEFINE_boolean("json", False, "One object per line instead.")
_PROFILE = flags.DEFINE_integer(
  "profile", 0, "Print this many of the longest computations and stalls.", 0
)

_BEST = 5  # rows that a sweep prints
_BATCH_FACTORS = (1, 2, 4)  # that a sweep tries


@program.main_on_devices
def main():
  fields = overridden(experiment_flag.read())
  config = TrainConfig.from_dict(fields)
  if cards := [t for t in _TOPOLOGY.value or [] if t.startswith("gpu")]:
    if len(cards) < len(_TOPOLOGY.value) or _PROGRAM.value == "decode":
      raise app.UsageError(
        f"got --topology={','.join(_TOPOLOGY.value)} with "
        f"--program={_PROGRAM.value}, expected GPUs alone and "
        "--program=train: only a training step's memory is estimated for them"
      )
    found = [gpu_card.answer(config, card) for card in cards]
    lines = card_report
  elif _PROGRAM.value == "decode":
    found, lines = rates(config), rate_report
  else:
    found, lines = estimates(config), report
  if _JSON.value:
    named = {
      "config": experiment_flag.path(),
      "config_hash": config_hash(fields),
    }
    for one in found:
      print(json.dumps(named | one.to_json()))
    return
  for line in lines(found, config):
    print(line)


def estimates(config: TrainConfig) -> list[Estimate]:
  """Estimates the training step on every slice asked for."""
  found = []
  for topology in _TOPOLOGY.value or [config.topology]:
    if _SWEEP.value:
      found += sweep(config, topology)
    else:
      found.append(train_step.estimate(config, topology, _MODE.value))
  return found


def rates(config: TrainConfig) -> list[ControlRate]:
  """Estimates a policy's rate on one chip of every slice asked for."""
  if _SWEEP.value or _MESH.value:
    raise app.UsageError(
      "got --program=decode with --sweep or --mesh, expected neither: a policy "
      "is planned on one chip"
    )
  smallest = [control_rate.smallest_slice(config.topology)]
  return [
    control_rate.predict(
      config,
      topology,
      _MODE.value,
      _BATCH_SIZE.value or 1,
      _PASSES.value,
      _INT8.value,
    )
    for topology in _TOPOLOGY.value or smallest
  ]


def overridden(fields: dict) -> dict:
  """Replaces fields of the config by those that flags give."""
  if _MESH.value:
    fields["mesh"] = train_step.parse_mesh(_MESH.value)
  if _BATCH_SIZE.value is not None:
    fields["batch_size"] = _BATCH_SIZE.value
  return fields


def sweep(config: TrainConfig, topology: str) -> list[Estimate]:
  """Finds the meshes and batch sizes that fit and have the highest MFU.

  Where none fits, the one that comes nearest.
  """
  found = []
  for mesh in train_step.meshes(config, topology):
    for factor in _BATCH_FACTORS:
      changed = dataclasses.replace(
        config, mesh=mesh, batch_size=config.batch_size * factor
      )
      found.append(train_step.estimate(changed, topology, _MODE.value))
  fitting = sorted((p for p in found if p.fits), key=lambda e: -e.mfu)
  return fitting[:_BEST] or [min(found, key=lambda e: e.hbm_bytes)]


def report(found: list[Estimate], config: TrainConfig) -> Iterator[str]:
  """Formats a table, and under it what its words and numbers mean."""
  row = "{:<14}{:>6}  {:<13}{:>6} {:>13} {:>8}{:>9}{:>9}{:>7}{:>9}{:>7}{:>11}"
  yield "compiler-predicted times; HBM as the compiler plans it"
  yield row.format(
    *("slice", "chips", "mesh", "batch", "HBM GB/chip", "step s"),
    *("compute", "exposed", "MFU", "ex/s", "days", "chip-hours"),
  )
  for estimate in found:
    fields = estimate.to_json()
    used, limit = estimate.hbm_bytes / 1e9, estimate.hbm_limit_bytes / 1e9
    start = (
      *(estimate.topology, estimate.chips, fields["mesh"]),
      *(estimate.batch_size, f"{used:.2f}/{limit:.1f}"),
    )
    if estimate.fits:
      yield row.format(
        *start,
        f"{fields['step_s']:.3f}",
        f"{fields['compute_s']:.3f}",
        f"{fields['exposed_comm_s']:.3f}",
        f"{100 * estimate.mfu:.1f}%",
        f"{fields['examples_per_s']:.0f}",
        f"{estimate.training_s / 86400:.2f}",
        f"{estimate.chip_hours:.0f}",
      )
    else:
      yield row.format(*start, "does not fit", *[""] * 6).rstrip()
  yield ""
  for estimate in found:
    yield from details(estimate, config)


def details(estimate: Estimate, config: TrainConfig) -> Iterator[str]:
  """Formats where the memory and time go."""
  if not estimate.fits:
    yield f"{estimate.topology}: {train_step.advice(estimate, config)}"
    return
  split = ", ".join(
    f"{name} {size / 1e9:.2f}" for name, size in estimate.hbm_split.items()
  )
  peak = chip_of(estimate.topology).peak_flops
  mesh = estimate.to_json()["mesh"]
  which = f"{estimate.topology}, mesh {mesh}, batch {estimate.batch_size}"
  yield f"{which}, GB per chip: {split}"
  yield (
    f"  MFU = useful FLOP / (step s * chips * peak) = "
    f"{estimate.useful_flops:.3g} / ({estimate.cost.step_s:.3f} * "
    f"{estimate.chips} * {peak:.3g}); useful FLOP: see "
    "tpu.train_step.useful_flops"
  )
  if "*" in estimate.topology:
    cost, network = estimate.cost, chip_of(estimate.topology).dcn_bytes_per_s
    yield (
      f"  between slices: {cost.dcn_bytes / 1e9:.3g} GB per chip over the data "
      f"centre's network, {cost.exposed_dcn_s:.3f} s of it exposed; "
      f"{network / 1e9:.3g} GB/s per chip are assumed, see tpu/hlo_cost.py"
    )
  if estimate.cost.unknown_trip_counts:
    yield (
      f"  {estimate.cost.unknown_trip_counts} loops were counted once: nothing "
      "says how often they run"
    )
  yield from profile(estimate.cost)


def rate_report(found: list[ControlRate], config: TrainConfig) -> Iterator[str]:
  """Formats a table of control rates."""
  row = "{:<14}{:>7} {:>13} {:>11}{:>7}"
  positions = config.model.num_image_tokens + config.prompt.prefix_length
  yield "compiler-predicted times; HBM as the compiler plans it; one chip"
  yield (
    f"one action: {positions} image and text tokens, {_PASSES.value:g} passes "
    f"over the action's tokens; parameters in {config.model.llm.dtype}"
    f"{', matrices in int8' if _INT8.value else ''}"
  )
  yield row.format("slice", "robots", "HBM GB/chip", "s per call", "Hz")
  for rate in found:
    memory = f"{rate.hbm_bytes / 1e9:.2f}/{rate.hbm_limit_bytes / 1e9:.1f}"
    times = ("does not fit", "")
    if rate.fits:
      times = (f"{rate.cost.step_s:.4f}", f"{rate.hz:.1f}")
    yield row.format(rate.topology, rate.batch_size, memory, *times).rstrip()
  yield ""
  for rate in found:
    parameters = rate.facts["parameters"]
    yield (
      f"{rate.topology}, GB: parameters {parameters / 1e9:.2f}, all "
      f"else {(rate.hbm_bytes - parameters) / 1e9:.2f}"
    )
    if rate.fits:
      yield from profile(rate.cost)


def card_report(
  found: list[gpu_card.Answer], config: TrainConfig
) -> Iterator[str]:
  """Formats where the memory of a GPU would go, and what would fit."""
  del config
  yield "GB by formula, no program was compiled; its error: docs/one_gpu.md"
  for answer in found:
    yield from answer.lines()


def profile(cost: Cost) -> Iterator[str]:
  """Formats what takes longest, as many rows as --profile asks for."""
  for title, sources in (
    ("ms", cost.by_source),
    ("ms stalled by", cost.exposed_by_source),
  ):
    for (kind, _, place), seconds in sources.most_common(_PROFILE.value):
      yield f"  {1e3 * seconds:8.2f} {title} {kind} {place}"


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  app.run(main)

"""Compares what `launch/estimate.py` predicts with published step times.

  python launch/validation.py                          (both cases, full mode)
  python launch/validation.py --cases=decoder_16b --mode=fast

One JSON object per line: the published and the compiler-predicted step time,
and the error as a part of the published one. In full mode, which the claim is
about, a case takes minutes of CPU time. No TPU is needed (extra `estimate`).

Both cases are training steps on v5e:16x16, as they were timed:

paligemma_3b: PaliGemma's stage 1 (arXiv:2407.07726: 5189 tokens/s per chip, 256
  image and 128 text tokens, batch 8192, Adam), trained with big_vision. It is
  our model and trainer with what big_vision does otherwise: activations in
  float32, one mesh axis over all chips, each parameter split along its longest
  dimension that 256 divides (so that the encoder is whole on every chip),
  logits on all text, and JAX's own gradients of the token table.
decoder_16b: MaxText's 16B decoder (its configs/tpu/v5e/README: 120 TFLOP/s per
  chip, 6 x 2048 tokens per chip, full remat, flash attention), written out
  in `tpu.reference_programs`: every weight is an array of its own, where our
  Gemma joins some, which takes longer at this size. The attention is JAX's
  kernel for TPUs.

Neither has the compiler options of our own step.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import resource
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
from absl import app, flags
from jax.sharding import Mesh

from configs import rt2_paligemma_3b
from launch import program
from rt2_jax.errors import unknown_name
from rt2_jax.tpu import ahead_of_time, prediction, reference_programs
from rt2_jax.train_config import TrainConfig, config_hash

_CASES = flags.DEFINE_list("cases", None, "Names from above; default: all.")
_MODE = flags.DEFINE_enum(
  "mode", "full", ahead_of_time.MODES, "See estimate.py."
)

_TOPOLOGY = "v5e:16x16"
_CHIPS = math.prod(reference_programs.MESH.values())


@dataclasses.dataclass(frozen=True)
class Case:
  """A published step time, and how the same step is made here.

  Attributes:
    published_step_s: seconds.
    source: where it stands.
    lower: for `ahead_of_time.compile_for`.
    program: what `lower` is called with.
  """

  published_step_s: float
  source: str
  lower: Callable[..., tuple[jax.stages.Lowered, Mesh, dict]]
  program: Any


@program.main_on_devices
def main():
  known = cases()
  names = _CASES.value or list(known)
  for name in names:
    if name not in known:
      raise unknown_name("a case", name, known)
  for name in names:
    row = {"case": name} | compare(known[name], _MODE.value)
    print(json.dumps(row), flush=True)


def cases() -> Mapping[str, Case]:
  """Lists the cases by name, see above."""
  paligemma, decoder = paligemma_3b(), decoder_16b()
  tokens = paligemma.batch_size * (256 + 128)
  return MappingProxyType(
    {
      "paligemma_3b": Case(
        published_step_s=tokens / _CHIPS / 5189,
        source="PaliGemma report (arXiv:2407.07726), 5189 tokens/s per chip",
        lower=reference_programs.lower_paligemma,
        program=paligemma,
      ),
      "decoder_16b": Case(
        published_step_s=decoder.maxtext_flops() / _CHIPS / 120e12,
        source="MaxText configs/tpu/v5e/README, 16B: 120 TFLOP/s per chip",
        lower=reference_programs.lower_decoder,
        program=decoder,
      ),
    }
  )


def compare(case: Case, mode: str) -> dict[str, Any]:
  """Compiles a case's step; one row of what this program prints."""
  start = children_cpu_s()
  step = prediction.predict(
    _TOPOLOGY, case.lower, (case.program,), case.program.batch_size, mode
  )
  cpu_s = children_cpu_s() - start
  row = {
    "label": "compiler-predicted",
    "source": case.source,
    "config_hash": config_hash(dataclasses.asdict(case.program)),
    "topology": _TOPOLOGY,
    "mode": mode,
    "published_step_s": round(case.published_step_s, 3),
    "predicted_step_s": None,
    "error": None,
    "hbm_gb_per_chip": round(step.hbm_bytes / 1e9, 2),
    "compile_cpu_s": round(cpu_s),
    "versions": versions(),
  }
  if step.fits:
    step_s = step.cost.step_s
    row["predicted_step_s"] = round(step_s, 3)
    row["error"] = round(step_s / case.published_step_s - 1, 3)
  return row


def children_cpu_s() -> float:
  """Measures CPU seconds of the processes that this one has waited for."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def versions() -> dict[str, str]:
  names = ("jax", "flax", "optax", "libtpu")
  return {name: importlib.metadata.version(name) for name in names}


def paligemma_3b() -> TrainConfig:
  """Changes our recipe to the one that was timed."""
  fields = rt2_paligemma_3b.get_config().to_dict()
  fields["model"]["dtype"] = "float32"
  # One token and 128 more, of which the last is predicted and not read.
  fields["prompt"] = {"prefix_length": 1, "suffix_length": 128}
  fields |= {"sources": {}, "robot_share": 0.0, "augmentation": {}}
  fields |= {"mesh": reference_programs.MESH, "batch_size": 8192}
  return TrainConfig.from_dict(fields)


def decoder_16b() -> reference_programs.DecoderConfig:
  return reference_programs.DecoderConfig(
    width=4096,
    depth=32,
    mlp_dim=28672,
    num_heads=64,
    head_dim=128,
    vocab_size=32_000,
    batch_size=6 * _CHIPS,
    columns=2048,
  )


if __name__ == "__main__":
  app.run(main)

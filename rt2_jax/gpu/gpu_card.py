"""Answers whether a training step fits on a GPU, before it is compiled.

By the formula of `memory_estimate`; what fits otherwise is found by trying
fields of the config, from those that cost nothing to those that train less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rt2_jax.errors import UserError
from rt2_jax.gpu import memory_estimate
from rt2_jax.gpu.memory_estimate import Memory
from rt2_jax.models.lora_config import LoraConfig
from rt2_jax.train_config import TrainConfig

# Of the memory that a card is sold with, in GB of 1e9 bytes, what a program can
# have: the driver and CUDA's libraries take the rest (0.9 GB on an H100).
_DRIVER_GB = 1.0

# Largest error of the formula, measured or beside XLA's plans for an H100, see
# docs/one_gpu.md.
MARGIN = 1.08


@dataclasses.dataclass(frozen=True)
class Answer:
  """Whether a config's step fits on a GPU.

  Attributes:
    topology: such as "gpu:24GB".
    limit: bytes that a program can have there.
    memory: of the config as it is.
    flags: fields with which it would fit or, where it fits, compute less
      again; None where none were found.
    changed: what it needs with them.
  """

  topology: str
  limit: float
  memory: Memory
  flags: Mapping[str, Any] | None = None
  changed: Memory | None = None

  @property
  def fits(self) -> bool:
    return fits(self.memory, self.limit)

  def to_json(self) -> dict[str, Any]:
    return {
      "topology": self.topology,
      "label": "by formula",
      "fits": self.fits,
      "memory_gb": round(self.memory.total / 1e9, 2),
      "limit_gb": round(self.limit / 1e9, 2),
      "parameters_gb": round(self.memory.parameters / 1e9, 2),
      "optimizer_gb": round(self.memory.optimizer / 1e9, 2),
      "peak_stage": self.memory.stage,
      "faster_with" if self.fits else "fits_with": self.flags
      and dict(self.flags),
    }

  def lines(self) -> Iterator[str]:
    """Says it in words."""
    memory = self.memory
    rest = memory.total - memory.parameters - memory.optimizer
    yield (
      f"{self.topology}: {'fits' if self.fits else 'does not fit'}; needs "
      f"{memory.total / 1e9:.1f} of {self.limit / 1e9:.0f} GB: parameters "
      f"{memory.parameters / 1e9:.1f}, optimizer {memory.optimizer / 1e9:.1f}, "
      f"gradients and activations {rest / 1e9:.1f} (peak: {memory.stage})"
    )
    if self.flags:
      words = " ".join(
        f"--config.{n}={_word(v)}" for n, v in self.flags.items()
      )
      better = "computes less again" if self.fits else "fits"
      yield f"  {better} with {self.changed.total / 1e9:.1f} GB with {words}"
    elif not self.fits:
      yield "  no flags were found with which it would fit: a larger GPU"


def answer(config: TrainConfig, topology: str) -> Answer:
  """Estimates a config's step on a GPU, and looks for better flags.

  Raises:
    UserError: not a GPU with its memory.
  """
  limit = parse_card(topology)
  found = Answer(topology, limit, memory_estimate.of(config))
  changes = changes_that_save_time if found.fits else changes_that_fit
  flags, changed = changes(config, limit) or (None, None)
  return dataclasses.replace(found, flags=flags, changed=changed)


def _word(value: Any) -> str:
  """A value as a flag takes it."""
  return f'"{value}"' if isinstance(value, tuple) else str(value)


def parse_card(topology: str) -> float:
  """Reads "gpu:24GB" as the bytes that a program can have.

  Raises:
    UserError: not a GPU with a number of GB.
  """
  kind, _, size = topology.partition(":")
  number = size.removesuffix("GB")
  if kind != "gpu" or not number.isdecimal() or int(number) <= _DRIVER_GB:
    raise UserError(
      f"got topology {topology!r}, expected the GPU's memory, such as gpu:24GB"
    )
  return (int(number) - _DRIVER_GB) * 1e9


def fits(memory: Memory, limit: float) -> bool:
  """Tells whether the step fits, with the formula's error to spare."""
  return memory.total * MARGIN <= limit


def changes_that_fit(
  config: TrainConfig, limit: float
) -> tuple[Mapping[str, Any], Memory] | None:
  """Finds the first of `_CHANGES`, with fewer rows at once, that fits.

  Returns:
    Fields of the config by flag, such as "optimizer.name", and what the step
    then needs; None where none fits.
  """
  for change in _CHANGES:
    flags = dict(change)
    if "model.lora_rank" in flags:
      if not config.pretrained:
        continue  # adapters need a base
      if config.optimizer.frozen:  # which may name adapters, too
        flags["optimizer.frozen"] = ()
    if config.model.llm.remat == "full":
      flags.pop("model.remat", None)
    changed = _changed(config, flags)
    state = memory_estimate.abstract_state(changed)
    for microbatches in _microbatches(config):
      parts = dataclasses.replace(changed, microbatches=microbatches)
      memory = memory_estimate.of(parts, state)
      if fits(memory, limit):
        if microbatches > config.microbatches:
          flags["microbatches"] = microbatches
        return flags, memory
  return None


def changes_that_save_time(
  config: TrainConfig, limit: float
) -> tuple[Mapping[str, Any], Memory] | None:
  """Finds what keeps more for the backward pass than the config does, and fits.

  Fewer rows at once make room for it, where gradients are as small as those of
  adapters: each part of a batch reads the weights again.

  Returns:
    As `changes_that_fit`; None where nothing does.
  """
  for remat in _KEEPS_MORE.get(config.model.llm.remat, ()):
    # "ungated" saves less than reading the weights again takes.
    fewest = _FEWEST_ROWS if remat == "dots" else config.batch_size
    for microbatches in _microbatches(config, fewest):
      flags = {"model.remat": remat}
      if microbatches > config.microbatches:
        flags["microbatches"] = microbatches
      memory = memory_estimate.of(_changed(config, flags))
      if fits(memory, limit):
        return flags, memory
  return None


def _microbatches(config: TrainConfig, fewest: int = 1) -> Iterator[int]:
  """Yields the config's own and larger ones, down to `fewest` rows at once."""
  yield config.microbatches
  for number in range(config.microbatches + 1, config.batch_size // fewest + 1):
    if config.batch_size % number == 0:
      yield number


# Of `variants.REMAT`, what keeps more products. "none" keeps all else as well,
# and saves no product.
_FEWEST_ROWS = 4  # of 3B: products of them take longer than reading weights
_KEEPS_MORE: Mapping[str, tuple[str, ...]] = {
  "full": ("dots", "ungated"),
  "ungated": ("dots",),
}

# From what costs nothing to what trains less.
_BFLOAT16 = {"optimizer.param_dtype": "bfloat16"}
_ADAFACTOR = {"optimizer.name": "adafactor"}
_CHANGES: tuple[Mapping[str, Any], ...] = (
  {},
  {"model.remat": "full"},
  _BFLOAT16 | {"model.remat": "full", "optimizer.moment_dtype": "bfloat16"},
  _BFLOAT16 | _ADAFACTOR | {"model.remat": "full"},
  {
    "model.remat": "full",
    "model.lora_rank": 16,
    "model.lora_targets": ("llm/layers/",),
    "optimizer.trained": ("_lora/",),
    "optimizer.frozen_dtype": "bfloat16",
  },
)


def _changed(config: TrainConfig, flags: Mapping[str, Any]) -> TrainConfig:
  """The config with other values of the fields that `_CHANGES` names."""
  model, optimizer, rest = config.model, {}, {}
  for name, value in flags.items():
    part, _, field = name.rpartition(".")
    if part == "optimizer":
      optimizer[field] = value
    elif not part:
      rest[field] = value
  remat = flags.get("model.remat")
  changed = {"remat": remat} if remat else {}
  if rank := flags.get("model.lora_rank"):
    changed["lora"] = LoraConfig(rank, 16.0, flags["model.lora_targets"])
  model = dataclasses.replace(
    model,
    img=dataclasses.replace(model.img, **changed),
    llm=dataclasses.replace(model.llm, **changed),
  )
  return dataclasses.replace(
    config,
    model=model,
    optimizer=dataclasses.replace(config.optimizer, **optimizer),
    **rest,
  )

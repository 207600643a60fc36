"""Which matrices get an adapter of LoRA; without JAX, see `lora.py`."""

import dataclasses
import re

from rt2_jax import trees
from rt2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Which matrices get an adapter.

  Attributes:
    rank: of every adapter; 0 makes none.
    alpha: adapters are scaled by alpha / rank.
    targets: patterns of parameter names, such as "llm/layers/".

  Raises:
    UserError: a rank without targets, or a target that is no pattern.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = ()

  def __post_init__(self):
    trees.check_patterns(self.targets, "config.model.lora_targets")
    if self.rank and not self.targets:
      raise UserError(
        f"got config.model.lora_rank = {self.rank} without lora_targets, "
        "expected patterns of parameter names, such as ('llm/layers/',)"
      )

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  def adapts(self, name: str) -> bool:
    """Tells whether the parameter `name` has an adapter."""
    hit = any(re.search(pattern, name) for pattern in self.targets)
    return self.rank > 0 and hit


OFF = LoraConfig()

"""What a checkpoint says of itself: enough to act without the config.

`CheckpointMeta` is the JSON item `meta` of a checkpoint, and the largest part
of an exported folder's rt2.json. Each released format can be read.

Format 2 added `observation`, `observations`, `base`, the decoder's `family`,
`ActionTokenizer.horizon` and `Dimension.at_end`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.models.variants import VLMConfig
from rt2_jax.observation import ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import Tokenizer

FORMAT = 2
# Makes a robot policy of a folder that `launch/convert.py to_hf` wrote.
ROBOT_FILE = "rt2.json"
# Of format 1's action spaces, where it is not 0; see `Dimension.at_end`.
_AT_END = {"terminate": 1.0, "gripper": None, "gripper_closedness": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
  """The description of a trained model.

  Attributes:
    config: fields of the experiment's config file.
    model: sizes of the model.
    prompt: the fields of `Prompt`, without its tokenizer.
    prompts: fields that differ for a robot source, by its name.
    action_tokenizers: how each robot source writes actions.
    observation: cameras and history that the model reads.
    observations: what it reads of each robot source.
    tokenizer_sha256: of the SentencePiece model.
    statistics: what `data/compute_stats.py` found of each source.
    data: length and fingerprint of each source.
    versions: of the libraries that shape a checkpoint.
    control_hz: steps per second of each robot source whose data say it.
    base: which weights the adapters of LoRA belong to, see `weights.lora_base`;
      empty without adapters.
    format: of this description.
  """

  config: Mapping[str, Any]
  model: VLMConfig
  prompt: Mapping[str, Any]
  action_tokenizers: Mapping[str, ActionTokenizer]
  observation: ObservationSpec
  observations: Mapping[str, ObservationSpec]
  tokenizer_sha256: str
  statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prompts: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  control_hz: Mapping[str, float] = dataclasses.field(default_factory=dict)
  base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  format: int = FORMAT

  def to_dict(self) -> dict[str, Any]:
    """Converts to JSON form."""
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return own | {
      "model": dataclasses.asdict(self.model),
      "action_tokenizers": _dicts(self.action_tokenizers),
      "observation": self.observation.to_dict(),
      "observations": _dicts(self.observations),
    }

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> CheckpointMeta:
    """Inverts `to_dict`; also reads older formats, and leaves out other keys.

    Raises:
      UserError: a newer format.
    """
    if data.get("format", 1) > FORMAT:
      raise UserError(
        f"got a checkpoint of format {data['format']}, expected at most "
        f"{FORMAT}; it needs a newer release of rt2_jax"
      )
    if "format" not in data:
      data = _from_format_1(data)
    names = [field.name for field in dataclasses.fields(cls)]
    fields = {name: data[name] for name in names if name in data}
    action_tokenizers, specs = (
      fields["action_tokenizers"],
      fields["observations"],
    )
    return cls(
      **fields
      | {
        "model": VLMConfig.from_dict(fields["model"]),
        "action_tokenizers": {
          name: ActionTokenizer.from_dict(each)
          for name, each in action_tokenizers.items()
        },
        "observation": ObservationSpec.from_dict(fields["observation"]),
        "observations": {
          name: ObservationSpec.from_dict(each) for name, each in specs.items()
        },
      }
    )

  def robot(
    self, source: str | None
  ) -> tuple[ActionTokenizer | None, ObservationSpec]:
    """Looks up how the robot of a source acts, and what it sees.

    Args:
      source: may be None where there is one source, or none: then no tokenizer
        comes back, and the model answers and cannot act.

    Raises:
      UserError: no such source.
    """
    name = self._source_name(source)
    if not name:
      return None, self.observation
    return self.action_tokenizers[name], self.observations[name]

  def make_prompt(
    self, tokenizer: Tokenizer, source: str | None = None
  ) -> Prompt:
    """Builds the prompts of a source as in training; see `robot`."""
    own = self.prompts.get(self._source_name(source), {})
    return Prompt(tokenizer, **{**self.prompt, **own})

  def _source_name(self, source: str | None) -> str:
    """Finds the source to act as; "" where there is none."""
    known = self.action_tokenizers
    if source is None and not known:
      return ""
    if source is None and len(known) == 1:
      source = next(iter(known))
    if source not in known:
      raise unknown_name("the source to act as", str(source), known)
    return source


def _dicts(named: Mapping[str, Any]) -> dict[str, dict]:
  return {name: each.to_dict() for name, each in named.items()}


def _from_format_1(data: Mapping[str, Any]) -> dict[str, Any]:
  """Adds what format 2 says: one camera, no state, one action at a time."""
  model = dict(data["model"])
  # The one place where the family is inferred: format 1 had two of them.
  family = "gemma2" if model["llm"]["post_norms"] else "gemma"
  spec = ObservationSpec(history=model.pop("num_frames")).to_dict()
  action_tokenizers = data["action_tokenizers"]
  return {
    **data,
    "format": FORMAT,
    "model": model
    | {"num_images": spec["history"], "llm": model["llm"] | {"family": family}},
    "action_tokenizers": {
      name: _chunk_of_one(each) for name, each in action_tokenizers.items()
    },
    "observation": spec,
    "observations": dict.fromkeys(action_tokenizers, spec),
  }


def _chunk_of_one(action_tokenizer: Mapping[str, Any]) -> dict[str, Any]:
  """Converts a format 1 action tokenizer to format 2."""
  space = action_tokenizer["space"]
  dimensions = [
    {**d, "at_end": _AT_END.get(d["name"], 0.0)} for d in space["dimensions"]
  ]
  return {
    **action_tokenizer,
    "horizon": 1,
    "space": {**space, "dimensions": dimensions},
  }

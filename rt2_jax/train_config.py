"""One experiment as typed values, from the fields of a file in `configs/`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
from jax.sharding import Mesh

from rt2_jax import ranges, sharding
from rt2_jax.actions import ActionTokenizer
from rt2_jax.augment import Augmentation
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.input_pipeline import datasets, web
from rt2_jax.models import variants
from rt2_jax.models.vlm import abstract_params
from rt2_jax.optimizer import OptimizerConfig, make_optimizer
from rt2_jax.prompt import ROBOT_TEMPLATE, Prompt
from rt2_jax.ranges import at_least, between
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.train_state import OBJECTIVES, Trainer


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """See `prompt.Prompt`."""

  prefix_length: Annotated[int, at_least(1)]
  suffix_length: Annotated[int, at_least(1)]
  template: str = ROBOT_TEMPLATE
  plan_length: Annotated[int, at_least(0)] = 0


@dataclasses.dataclass(frozen=True)
class ActionConfig:
  """How actions are written: see `actions.ActionTokenizer`."""

  route: str = "rare"
  rt1_compat: bool = False


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
  """How batches are read.

  Attributes:
    num_threads: batches that are read and decoded at the same time.
    max_skipped: damaged or too long examples that may be left out, or replaced
      by the next one of their source; 0 makes the first one an error.
    index_folder: where indexes of shards are kept; "" keeps none.
  """

  num_threads: Annotated[int, at_least(1)] = 2
  max_skipped: Annotated[int, at_least(0)] = 0
  index_folder: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """What is measured on held-out data while training.

  Attributes:
    every: steps between evaluations; 0 never evaluates.
    num_steps: robot steps of each source's `eval_split`, spread over it.
    num_questions: web examples of each source's `eval_split`, likewise.
    batch_size: of one call.
  """

  every: Annotated[int, at_least(0)] = 0
  num_steps: Annotated[int, at_least(1)] = 512
  num_questions: Annotated[int, at_least(1)] = 512
  batch_size: Annotated[int, at_least(1)] = 64


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One experiment; the fields of a file in `configs/`.

  Reads no file, so that a run can be planned where its data are not.

  Attributes:
    topology: the slice that it is meant for, as `chips.SLICES` names them; a
      plan's default, no part of training.
    model: sizes of the parts.
    pretrained: weights to start from: an `.npz` of big_vision, a Hugging Face
      folder, {"img": …, "llm": …}, or the workdir of another run; "" starts
      from scratch.
    tokenizer_file: the SentencePiece model.
    prompt: lengths of the text fields and the robot's question.
    actions: how actions are written.
    sources: robot data, by name; may be empty, to pretrain.
    web: image-text data, by name; may be empty.
    robot_share: part of every batch that is robot data, e.g. 0.5 for
      RT-2-PaLI-X and 0.66 for RT-2-PaLM-E; 1.0 or 0.0 without the others.
    loader: threads, tolerance and where indexes are kept.
    augmentation: how training images are changed.
    optimizer: what happens to a gradient, and what does not train.
    evaluation: what is measured while training.
    mesh: devices along each of `sharding.MESH_AXES`; -1 chooses.
    batch_size: rows of the global batch.
    microbatches: parts that a batch is computed in, one after the other, to
      save memory.
    num_steps: length of training.
    seed: of parameters, data order and augmentation.
    log_every: steps between progress lines.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest stay on disk.
    objective: "answers" for all that a policy needs; "patches" teaches the
      encoder alone to name what each patch shows, row by row, from a web
      source whose answers have one token for each.
  """

  topology: str
  model: variants.VLMConfig
  pretrained: str | Mapping[str, str]
  tokenizer_file: str
  prompt: PromptConfig
  actions: ActionConfig
  sources: Mapping[str, datasets.SourceConfig]
  web: Mapping[str, web.WebConfig]
  robot_share: Annotated[float, between(0, 1)]
  loader: LoaderConfig
  augmentation: Augmentation
  optimizer: OptimizerConfig
  evaluation: EvaluationConfig
  mesh: Mapping[str, int]
  batch_size: Annotated[int, at_least(1)]
  microbatches: Annotated[int, at_least(1)]
  num_steps: Annotated[int, between(1, 2**31 - 1)]
  seed: Annotated[int, between(0, 2**32 - 1)]
  log_every: Annotated[int, at_least(1)]
  checkpoint_every: Annotated[int, at_least(1)]
  keep_checkpoints: Annotated[int, at_least(1)]
  objective: str = "answers"

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
    """Typed values from a config file's fields.

    Raises:
      UserError: an unknown or missing field, or a value that its reader
        refuses.
    """
    fields = dict(fields)
    for name, part in _PARTS.items():
      fields[name] = construct(part, name, fields.get(name, {}))
    for group, part in _GROUPS.items():
      fields[group] = {
        name: construct(part, f"{group}.{name}", source)
        for name, source in fields.get(group, {}).items()
      }
    return construct(cls, "", fields)

  def __post_init__(self):
    twice = set(self.sources) & set(self.web)
    if twice or not (self.sources or self.web):
      raise UserError(
        f"got robot sources {sorted(self.sources)} and web sources "
        f"{sorted(self.web)}, expected at least one source and no name twice; "
        "rename or add one"
      )
    share, both = self.robot_share, self.sources and self.web
    if not (0.0 < share < 1.0 if both else share == float(bool(self.sources))):
      raise UserError(
        f"got config.robot_share = {share} with {len(self.sources)} robot and "
        f"{len(self.web)} web sources, expected a part between 0 and 1 with "
        "both, 1.0 without web sources, 0.0 without robot sources"
      )
    for axis in self.mesh:
      if axis not in sharding.MESH_AXES:
        raise unknown_name("an axis of config.mesh", axis, sharding.MESH_AXES)
    self._check_objective()

  def _check_objective(self):
    if self.objective not in OBJECTIVES:
      raise unknown_name("config.objective", self.objective, OBJECTIVES)
    tokens, room = self.model.num_image_tokens, self.prompt.suffix_length
    if self.objective == "patches" and (self.sources or room <= tokens):
      raise UserError(
        f"got config.objective = 'patches' with robot sources "
        f"{sorted(self.sources)} and config.prompt.suffix_length = {room}, "
        f"expected web sources alone and more than the {tokens} image tokens, "
        "whose names the answers are"
      )

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """The text tokenizer.

    Raises:
      UserError: no such file, or it does not fit the model.
    """
    tokenizer = Tokenizer.from_file(self.tokenizer_file)
    if tokenizer.vocab_size != self.model.llm.vocab_size:
      raise UserError(
        f"got tokenizer {self.tokenizer_file!r} with {tokenizer.vocab_size} "
        "ids, expected config.model.vocab_size = "
        f"{self.model.llm.vocab_size}; change one of them"
      )
    return tokenizer

  @property
  def source_names(self) -> tuple[str, ...]:
    """Robot sources, then web sources: the order of `Batch.source`."""
    return (*self.sources, *self.web)

  def weights(self) -> tuple[float, ...]:
    """Share of each source in `source_names`."""
    shares = (self.robot_share, 1.0 - self.robot_share)
    weights = []
    for share, group in zip(shares, (self.sources, self.web), strict=True):
      total = sum(source.weight for source in group.values())
      weights += [s.weight / total * share for s in group.values()]
    return tuple(weights)

  def make_prompt(self) -> Prompt:
    return Prompt(self.tokenizer, **dataclasses.asdict(self.prompt))

  def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh over these devices, its -1 chosen for the model.

    Raises:
      UserError: the numbers do not multiply to the number of devices.
    """
    shape = sharding.mesh_shape(
      self.mesh,
      abstract_params(self.model),
      len(devices),
      sharding.num_slices(devices),
    )
    return sharding.make_mesh(shape, devices)

  def make_trainer(
    self, tokenizers: Mapping[str, ActionTokenizer], mesh: Mesh
  ) -> Trainer:
    """The parts of a step; `tokenizers` are those of the robot sources."""
    return Trainer(
      model=self.model,
      optimizer=make_optimizer(self.optimizer, self.num_steps),
      augmentation=self.augmentation,
      tokenizers=tuple(tokenizers.get(name) for name in self.source_names),
      seed=self.seed,
      mesh=mesh,
      microbatches=self.microbatches,
      trained=tuple(self.optimizer.trained),
      frozen=tuple(self.optimizer.frozen),
      param_dtype=self.optimizer.param_dtype,
      frozen_dtype=self.optimizer.frozen_dtype,
      ema_decay=self.optimizer.ema_decay,
      objective=self.objective,
    )

  def action_tokenizers(self) -> dict[str, ActionTokenizer]:
    """One per robot source: the same tokens, each with its dataset's bounds."""
    route = self.tokenizer.action_route(self.actions.route)
    return {
      name: ActionTokenizer(source.space, route, self.actions.rt1_compat)
      for name, source in self.sources.items()
    }


# What builds each part of a config, and each member of a group of sources.
_PARTS = {
  "model": variants.vlm,
  "prompt": PromptConfig,
  "actions": ActionConfig,
  "augmentation": Augmentation,
  "optimizer": OptimizerConfig,
  "loader": LoaderConfig,
  "evaluation": EvaluationConfig,
}
_GROUPS = {"sources": datasets.SourceConfig, "web": web.WebConfig}


def with_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fills in the default of every field that a config file leaves out."""
  parts = {
    name: _defaults(part) | dict(fields.get(name, {}))
    for name, part in _PARTS.items()
  }
  groups = {
    group: {
      name: _defaults(part) | dict(source)
      for name, source in fields.get(group, {}).items()
    }
    for group, part in _GROUPS.items()
  }
  return _defaults(TrainConfig) | dict(fields) | parts | groups


def _defaults(build: Callable) -> dict[str, Any]:
  """The defaults of a dataclass's or function's parameters, by name."""
  if dataclasses.is_dataclass(build):
    # A factory's default is no parameter's.
    made = {
      field.name: field.default_factory()
      for field in dataclasses.fields(build)
      if field.default_factory is not dataclasses.MISSING
    }
  else:
    made = {}
  return made | {
    name: parameter.default
    for name, parameter in inspect.signature(build).parameters.items()
    if parameter.default is not inspect.Parameter.empty and name not in made
  }


def config_hash(fields: Mapping[str, Any]) -> str:
  """Sixteen hex digits that name a config: of its fields, as JSON."""
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def construct(build: Callable, where: str, fields: Mapping[str, Any]) -> Any:
  """Calls `build(**fields)`, after a check of the fields.

  Args:
    build: a dataclass or function, its numbers annotated as in `ranges`.
    where: the place of the fields in the config; "" for its top.
    fields: by name.

  Raises:
    UserError: an unknown or missing field, or a number outside its range.
  """
  prefix = f"config.{where}." if where else "config."
  parameters = inspect.signature(build).parameters
  for name in fields:
    if name not in parameters:
      raise unknown_name(f"a field of {prefix[:-1]}", name, parameters)
  missing = [
    prefix + name
    for name, parameter in parameters.items()
    if parameter.default is inspect.Parameter.empty and name not in fields
  ]
  if missing:
    raise UserError(f"got no {', '.join(missing)}; set it in the config file")
  ranges.check(build, prefix, fields)
  return build(**fields)

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
from rt2_jax.input_pipeline import web
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.models import variants
from rt2_jax.models.vlm import abstract_params
from rt2_jax.observation import PRIMARY, ObservationSpec
from rt2_jax.optimizer import OptimizerConfig, make_optimizer
from rt2_jax.prompt import ROBOT_TEMPLATE, STATE_FIELD, Prompt
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

  @property
  def writes_state(self) -> bool:
    """Whether the template has a field for a robot's state."""
    return STATE_FIELD in self.template


@dataclasses.dataclass(frozen=True)
class ObservationConfig:
  """What the model reads of a robot: see `observation.ObservationSpec`.

  Attributes:
    cameras: names in the order in which images enter the model. A source
      without one of them takes part; its image is masked.
    history: frames of each camera, the newest included.
    uncropped: cameras that augmentation does not crop, such as "wrist".
    state: whether the prompt holds the robot's state; `prompt.template` then
      has the field `{state}`.
    state_dropout: fraction of the training examples whose prompt holds none,
      so that a policy cannot act by its state alone.
  """

  cameras: Sequence[str] = (PRIMARY,)
  history: Annotated[int, at_least(1)] = 1
  uncropped: Sequence[str] = ()
  state: bool = False
  state_dropout: Annotated[float, between(0, 1)] = 0.0

  @property
  def spec(self) -> ObservationSpec:
    """The cameras and history of the model; a robot adds what it has."""
    return ObservationSpec(
      cameras=tuple(self.cameras),
      history=self.history,
      uncropped=tuple(self.uncropped),
    )


@dataclasses.dataclass(frozen=True)
class ActionConfig:
  """How actions are written: see `actions.ActionTokenizer`."""

  route: str = "rare"
  rt1_compat: bool = False
  horizon: Annotated[int, at_least(1)] = 1


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """One experiment; the fields of a file in `configs/`.

  Reads no file, so that a run can be planned where its data are not. A config
  file states the fields without a default, and those that differ from it.

  Attributes:
    topology: the slice that it is meant for, as `chips.SLICES` names them; a
      plan's default, no part of training.
    model: sizes of the parts.
    pretrained: weights to start from: an `.npz` of big_vision, a Hugging Face
      folder, {"img": …, "llm": …}, or the workdir of another run; "" starts
      from scratch.
    tokenizer_file: the SentencePiece model.
    prompt: lengths of the text fields and the robot's question.
    observation: cameras, history and state that the model reads.
    actions: how actions are written.
    sources: robot data, by name; may be empty, to pretrain.
    web: image-text data, by name; may be empty.
    robot_share: fraction of every batch that is robot data, e.g. 0.5 for
      RT-2-PaLI-X and 0.66 for RT-2-PaLM-E; 1.0 without web sources, 0.0
      without robot sources.
    loader: threads, tolerance and where indexes are kept.
    augmentation: how training images are changed.
    optimizer: what happens to a gradient, and what does not train.
    evaluation: what is measured while training.
    mesh: devices along each of `sharding.MESH_AXES`; -1 chooses, an axis that
      is left out is 1.
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
  pretrained: str | Mapping[str, str] = ""
  tokenizer_file: str
  prompt: PromptConfig
  observation: ObservationConfig
  actions: ActionConfig
  sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
  web: Mapping[str, web.WebConfig] = dataclasses.field(default_factory=dict)
  robot_share: Annotated[float, between(0, 1)] = 1.0
  loader: LoaderConfig
  augmentation: Augmentation
  optimizer: OptimizerConfig
  evaluation: EvaluationConfig
  mesh: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(sharding.MESH_AXES, -1)
  )
  batch_size: Annotated[int, at_least(1)]
  microbatches: Annotated[int, at_least(1)] = 1
  num_steps: Annotated[int, between(1, 2**31 - 1)]
  seed: Annotated[int, between(0, 2**32 - 1)] = 0
  log_every: Annotated[int, at_least(1)] = 50
  checkpoint_every: Annotated[int, at_least(1)] = 1_000
  keep_checkpoints: Annotated[int, at_least(1)] = 3
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
    fields["model"] = dataclasses.replace(
      fields["model"], num_images=fields["observation"].spec.num_images
    )
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
    if self.observation.state != self.prompt.writes_state:
      raise UserError(
        f"got config.observation.state = {self.observation.state} with "
        f"config.prompt.template = {self.prompt.template!r}, expected the "
        "field '{state}' in the template of a model that reads a robot's "
        "state, and in no other; change one of them"
      )
    if self.model.adapted and not self.pretrained:
      raise UserError(
        "got config.model.lora_rank above 0 with config.pretrained = '', "
        "expected the weights of a base: adapters alone are stored"
      )
    self._check_objective()

  def _check_objective(self):
    if self.objective not in OBJECTIVES:
      raise unknown_name("config.objective", self.objective, OBJECTIVES)
    tokens, room = self.model.num_image_tokens, self.prompt.suffix_length
    unfit = self.sources or self.model.num_images > 1 or room <= tokens
    if self.objective == "patches" and unfit:
      raise UserError(
        f"got config.objective = 'patches' with robot sources "
        f"{sorted(self.sources)}, {self.model.num_images} images and "
        f"config.prompt.suffix_length = {room}, expected web sources alone, "
        f"one image and more than its {tokens} image tokens, whose names the "
        "answers are"
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
    self, action_tokenizers: Mapping[str, ActionTokenizer], mesh: Mesh
  ) -> Trainer:
    """Makes the parts of a step; `action_tokenizers` go by robot source."""
    return Trainer(
      model=self.model,
      optimizer=make_optimizer(self.optimizer, self.num_steps),
      augmentation=self.augmentation,
      action_tokenizers=tuple(
        action_tokenizers.get(name) for name in self.source_names
      ),
      seed=self.seed,
      mesh=mesh,
      microbatches=self.microbatches,
      trained=tuple(self.optimizer.trained),
      frozen=tuple(self.optimizer.frozen),
      param_dtype=self.optimizer.param_dtype,
      frozen_dtype=self.optimizer.frozen_dtype,
      ema_decay=self.optimizer.ema_decay,
      objective=self.objective,
      observation=self.observation.spec,
    )

  def action_tokenizers(self) -> dict[str, ActionTokenizer]:
    """One per robot source: the same tokens, each with its dataset's bounds."""
    route = self.tokenizer.action_route(self.actions.route)
    return {
      name: ActionTokenizer(
        source.space, route, self.actions.rt1_compat, self.actions.horizon
      )
      for name, source in self.sources.items()
    }

  def observation_specs(self) -> dict[str, ObservationSpec]:
    """What the model reads of each robot source.

    Raises:
      UserError: a source has none of the cameras, or no source has one of
        them.
    """
    spec, reads_state = self.observation.spec, self.observation.state
    specs = {
      name: source.observation_spec(spec, reads_state)
      for name, source in self.sources.items()
    }
    present = {camera for each in specs.values() for camera in each.present}
    if specs and (absent := set(spec.cameras) - present):
      raise UserError(
        f"got config.observation.cameras = {list(spec.cameras)}, of which no "
        f"source has {sorted(absent)}; remove it, or add a source that has it"
      )
    if reads_state and specs and not any(s.state for s in specs.values()):
      raise UserError(
        "got config.observation.state = True with sources "
        f"{sorted(specs)}, none of which has a state; set it to False"
      )
    return specs


# What builds each part of a config, and each member of a group of sources.
_PARTS = {
  "model": variants.vlm,
  "prompt": PromptConfig,
  "observation": ObservationConfig,
  "actions": ActionConfig,
  "augmentation": Augmentation,
  "optimizer": OptimizerConfig,
  "loader": LoaderConfig,
  "evaluation": EvaluationConfig,
}
_GROUPS = {"sources": SourceConfig, "web": web.WebConfig}


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


def without_defaults(
  fields: Mapping[str, Any], stated: Mapping[str, Any]
) -> dict[str, Any]:
  """Keeps the fields that a config file states or that differ from it.

  Args:
    fields: `with_defaults(stated)`, in which values may have changed.
    stated: the fields of the config file.

  Returns:
    Fields with `with_defaults(result) == fields`.
  """
  whole = with_defaults(stated)
  kept = _stated_or_changed(fields, whole, stated)
  for name in kept.keys() & _PARTS.keys():
    kept[name] = _stated_or_changed(
      fields[name], whole[name], stated.get(name, {})
    )
  for group in kept.keys() & _GROUPS.keys():
    kept[group] = {
      name: _stated_or_changed(
        source, whole[group].get(name, {}), stated.get(group, {}).get(name, {})
      )
      for name, source in fields[group].items()
    }
  return kept


def _stated_or_changed(
  fields: Mapping[str, Any], whole: Mapping[str, Any], stated: Mapping[str, Any]
) -> dict[str, Any]:
  return {
    name: value
    for name, value in fields.items()
    if name in stated or name not in whole or value != whole[name]
  }


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

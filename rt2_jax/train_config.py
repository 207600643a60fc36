"""One experiment as typed values, from the fields of a file in `configs/`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
from jax.sharding import Mesh

from rt2_jax import objectives, sharding
from rt2_jax.action_tokenizer import ActionConfig, ActionTokenizer
from rt2_jax.action_tokens import IntegerTokens, RareTokens
from rt2_jax.augment import Augmentation
from rt2_jax.differences import json_hash
from rt2_jax.divergence import DivergenceConfig
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.fields import Schema, construct
from rt2_jax.input_pipeline import web
from rt2_jax.input_pipeline.loader import LoaderConfig
from rt2_jax.input_pipeline.mixture import weigh
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.models import variants
from rt2_jax.models.vlm import abstract_params
from rt2_jax.observation import ObservationConfig, ObservationSpec
from rt2_jax.optimizer import OptimizerConfig, make_optimizer
from rt2_jax.prompt import STATE_FIELD, Prompt, PromptConfig, check_fields
from rt2_jax.ranges import at_least, between
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.trackers import TrackingConfig
from rt2_jax.train_state import Trainer
from rt2_jax.watchdog import WatchdogConfig


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Fields of a config's `evaluation`: held-out data, while training.

  Attributes:
    every: steps between evaluations; 0 never evaluates.
    num_robot_steps: of each source's `eval_split`, spread over it.
    num_questions: web examples of each source's `eval_split`, likewise.
    num_panels: pictures for the log of each robot source: what the robot saw,
      recorded and predicted actions.
    batch_size: of one call.
  """

  every: Annotated[int, at_least(0)] = 0
  num_robot_steps: Annotated[int, at_least(1)] = 512
  num_questions: Annotated[int, at_least(1)] = 512
  num_panels: Annotated[int, at_least(0)] = 4
  batch_size: Annotated[int, at_least(1)] = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """One experiment; the fields of a file in `configs/`.

  Reads no file, so that a run can be estimated where its data are not. A config
  file states the fields without a default, and those that differ from it.

  Attributes:
    topology: the slice that it is meant for, as `chips.SLICES` names them; the
      default of `launch/estimate.py`, no part of training.
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
    checkpoint_minutes: minutes after which the next log saves, too; 0 counts
      steps alone.
    keep_checkpoints: how many of the newest stay on disk.
    keep_best: a metric of the evaluation, such as "bridge/within_2_bins/all",
      whose best checkpoint stays as well; "-NAME" for the smallest; "" for
      none.
    divergence: which steps are bad, and how many may be left out.
    watchdog: when a run that hangs is given up.
    tracking: where figures go beside TensorBoard.
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
  checkpoint_minutes: Annotated[float, at_least(0)] = 0.0
  keep_checkpoints: Annotated[int, at_least(1)] = 3
  keep_best: str = ""
  divergence: DivergenceConfig
  watchdog: WatchdogConfig
  tracking: TrackingConfig
  objective: str = "answers"

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
    """Converts a config file's fields to typed values.

    Raises:
      UserError: an unknown or missing field, or a value that its reader
        refuses.
    """
    fields = _SCHEMA.construct_parts(fields)
    fields["model"] = dataclasses.replace(
      fields["model"], num_images=fields["observation"].spec.num_images
    )
    return construct(cls, "config.", fields)

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
    for axis, size in self.mesh.items():
      if axis not in sharding.MESH_AXES:
        raise unknown_name("an axis of config.mesh", axis, sharding.MESH_AXES)
      if type(size) is not int or size < -1 or size == 0:
        raise UserError(
          f"got config.mesh.{axis} = {size!r}, expected a number of devices, "
          "or -1, which chooses"
        )
    self._check_sources()
    if self.model.adapted and not self.pretrained:
      raise UserError(
        "got config.model.lora_rank above 0 with config.pretrained = '', "
        "expected the weights of a base: adapters alone are stored"
      )
    if self.keep_best and not self.evaluation.every:
      raise UserError(
        f"got config.keep_best = {self.keep_best!r} without an evaluation, "
        "expected config.evaluation.every above 0, or keep_best = ''"
      )
    objectives.check(
      self.objective, self.model, self.sources, self.prompt.suffix_length
    )

  def _check_sources(self):
    own = [s.template for s in self.sources.values() if s.template]
    for template in [self.prompt.template, *own]:
      check_fields(template)
      if self.observation.state != (STATE_FIELD in template):
        raise UserError(
          f"got config.observation.state = {self.observation.state} with the "
          f"template {template!r}, expected the field '{{state}}' in each "
          "template of a model that reads a robot's state, and in no other; "
          "change one of them"
        )

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """Opens the text tokenizer.

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
    """Lists robot sources, then web sources: the order of `Batch.source`."""
    return (*self.sources, *self.web)

  def weights(self, sizes: Sequence[int]) -> tuple[float, ...]:
    """Computes each source's fraction of a batch, given their examples."""
    groups = self.sources.values(), self.web.values()
    return weigh(groups, (self.robot_share, 1.0 - self.robot_share), sizes)

  def make_prompt(self, source: str = "") -> Prompt:
    """Makes the prompt of a robot source, or that of the web."""
    own = self.sources[source].prompt if source else {}
    return Prompt(self.tokenizer, **dataclasses.asdict(self.prompt) | own)

  def make_mesh(self, devices: Sequence[jax.Device]) -> Mesh:
    """Makes the mesh over these devices, its -1 chosen for the model.

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
    """Builds the train step; `action_tokenizers` of the robot sources."""
    return Trainer(
      model=self.model,
      optimizer=make_optimizer(self.optimizer, self.num_steps),
      augmentation=self.augmentation,
      fractions=tuple(
        s.augmentation for s in (*self.sources.values(), *self.web.values())
      ),
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
      masked_fraction=self.actions.masked_fraction,
      observation=self.observation.spec,
      skips_bad_steps=self.divergence.max_skipped > 0,
      largest_gradient=self.divergence.gradient_norm or math.inf,
    )

  def action_tokenizers(
    self, route: RareTokens | IntegerTokens | None = None
  ) -> dict[str, ActionTokenizer]:
    """Makes one per robot source: the same tokens, its dataset's bounds.

    Args:
      route: how actions are written; None reads the config's tokenizer file.
    """
    route = route or self.tokenizer.action_route(self.actions.route)
    return {
      name: ActionTokenizer(
        source.space,
        route,
        self.actions.rt1_compat,
        source.horizon or self.actions.horizon,
      )
      for name, source in self.sources.items()
    }

  def observation_specs(self) -> dict[str, ObservationSpec]:
    """Says what the model reads of each robot source.

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


_SCHEMA = Schema(
  TrainConfig,
  parts={
    "model": variants.vlm,
    "prompt": PromptConfig,
    "observation": ObservationConfig,
    "actions": ActionConfig,
    "augmentation": Augmentation,
    "optimizer": OptimizerConfig,
    "loader": LoaderConfig,
    "evaluation": EvaluationConfig,
    "divergence": DivergenceConfig,
    "watchdog": WatchdogConfig,
    "tracking": TrackingConfig,
  },
  groups={"sources": SourceConfig, "web": web.WebConfig},
  prefix="config.",
)
with_defaults = _SCHEMA.with_defaults
without_defaults = _SCHEMA.without_defaults


def config_hash(fields: Mapping[str, Any]) -> str:
  """Hashes a config's fields as JSON to sixteen hex digits."""
  return json_hash(fields)[:16]

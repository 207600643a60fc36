"""Held-out data: what a policy is measured on, also while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.evaluators import action_accuracy, vqa
from rt2_jax.evaluators.action_accuracy import NEAR, ActionAccuracy
from rt2_jax.evaluators.panels import Chosen, Panel
from rt2_jax.input_pipeline import examples, in_order
from rt2_jax.input_pipeline.examples import RobotExamples, WebExamples
from rt2_jax.input_pipeline.loader import LoaderConfig
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.input_pipeline.step_index import StepSource
from rt2_jax.input_pipeline.web import WebConfig, WebExample, WebSource
from rt2_jax.observation import Batched
from rt2_jax.policy import Policy
from rt2_jax.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Opens sources' evaluation splits and measures policies on them.

  Attributes:
    loader: where indexes are kept, how much damage is tolerated.
    batch_size: examples in one call of the policy.
    at: is told which batch comes next.
  """

  loader: LoaderConfig
  batch_size: int
  at: Callable[[str], None] = lambda doing: None

  def open_steps(self, source: SourceConfig, policy: Policy) -> RobotExamples:
    """Opens a robot source as the policy reads it.

    Raises:
      UserError: no such split, or bad data.
    """
    return examples.open_robot(
      source,
      source.eval_split,
      policy.action_tokenizer,
      policy.prompt,
      policy.observation,
      self.loader.index_folder,
      self.loader.max_skipped,
    )

  def open_questions(self, source: WebConfig, policy: Policy) -> WebExamples:
    """Opens a web source as the policy reads it; raises as `open_steps`."""
    return examples.open_web(
      source,
      source.eval_split,
      policy.prompt,
      policy.observation,
      self.loader.index_folder,
      self.loader.max_skipped,
    )

  def read_steps(
    self, policy: Policy, steps: RobotExamples, limit: int | None = None
  ) -> Iterator[tuple[Batched, np.ndarray]]:
    """Reads observations and recorded chunks for `action_accuracy.evaluate`.

    Args:
      policy: will predict.
      steps: of `open_steps`.
      limit: how many steps, evenly spread over the source; None: all.
    """
    return self._told(in_order.read_steps(steps, *self._reading(policy, limit)))

  def read_questions(
    self, policy: Policy, questions: WebExamples, limit: int | None = None
  ) -> Iterator[tuple[np.ndarray, np.ndarray, list[WebExample]]]:
    """Reads questions for `vqa.evaluate`; arguments as of `read_steps`."""
    read = in_order.read_questions(questions, *self._reading(policy, limit))
    return self._told(read)

  def _reading(self, policy: Policy, limit: int | None) -> tuple:
    resolution = policy.model.img.image_size
    return resolution, self.batch_size, limit, self.loader.max_skipped

  def _told(self, batches: Iterable[Any]) -> Iterator[Any]:
    for number, batch in enumerate(batches):
      self.at(f"evaluating, batch {number}")
      yield batch


class Measured(NamedTuple):
  """What an evaluation finds.

  Attributes:
    metrics: `{source}/{metric}` -> number.
    drawings: `{source}/{number}` -> draws a picture of a step, uint8[h, w, 3].
  """

  metrics: dict[str, float]
  drawings: dict[str, Callable[[], np.ndarray]]


class Evaluation:
  """Every source's held-out split, opened once; call it with parameters."""

  def __init__(
    self,
    config: TrainConfig,
    action_tokenizers: Mapping[str, ActionTokenizer],
    mesh: Mesh,
    at: Callable[[str], None],
  ):
    """Opens the splits, so that a missing one stops a run at its start.

    Args:
      config: whose sources and `evaluation` are used.
      action_tokenizers: of the robot sources.
      mesh: where the parameters live.
      at: is told which batch comes next.

    Raises:
      UserError: no such split, or bad data.
    """
    self._limits = config.evaluation
    self._held_out = HeldOut(config.loader, config.evaluation.batch_size, at)
    prompt, specs = config.make_prompt, config.observation_specs()
    self._policies = {
      name: Policy(
        config.model, None, prompt(name), action_tokenizer, specs[name], mesh
      )
      for name, action_tokenizer in action_tokenizers.items()
    }
    self._answering = Policy(
      config.model, None, prompt(), None, config.observation.spec, mesh
    )
    self._steps = {
      name: self._held_out.open_steps(source, self._policies[name])
      for name, source in config.sources.items()
    }
    self._questions = {
      name: self._held_out.open_questions(source, self._answering)
      for name, source in config.web.items()
      if source.eval_split
    }

  @property
  def sources(self) -> dict[str, StepSource | WebSource]:
    """Returns the held-out data, by the source's name."""
    opened = {**self._steps, **self._questions}
    return {name: each.source for name, each in opened.items()}

  @property
  def headlines(self) -> list[str]:
    """Names the metric of each source that says most."""
    return [
      *(f"{name}/within_{NEAR}_bins/all" for name in self._steps),
      *(f"{name}/accuracy" for name in self._questions),
    ]

  def check_metric(self, metric: str):
    """Refuses a metric that no evaluation finds, before the first one.

    Which tasks a web source holds is known only when it has been read.

    Raises:
      UserError: `config.keep_best` names such a metric.
    """
    robots = [
      f"{name}/{found}"
      for name, policy in self._policies.items()
      for found in action_accuracy.metric_names(policy)
    ]
    web = [
      f"{name}/{found}" for name in self._questions for found in vqa.METRICS
    ]
    if metric not in robots and not any(
      metric == name or metric.startswith(f"{name}/") for name in web
    ):
      raise unknown_name("config.keep_best", metric, [*robots, *web])

  def __call__(self, params: Any) -> Measured:
    """Measures parameters, with the same result on every process.

    Every process reads the same examples and computes its devices' part.
    """
    metrics, drawings = {}, {}
    for name, policy in self._policies.items():
      policy.params = params
      result, panels = self._actions(policy, self._steps[name])
      metrics |= {f"{name}/{key}": n for key, n in result.metrics().items()}
      drawings |= {f"{name}/{i}": panel.draw for i, panel in enumerate(panels)}
    self._answering.params = params
    for name, source in self._questions.items():
      read = self._held_out.read_questions(
        self._answering, source, self._limits.num_questions
      )
      result = vqa.evaluate(self._answering, read)
      metrics |= {f"{name}/{key}": value for key, value in result.items()}
    return Measured(metrics, drawings)

  def _actions(
    self, policy: Policy, steps: RobotExamples
  ) -> tuple[ActionAccuracy, list[Panel]]:
    """Compares actions, and keeps a few steps that are spread over them."""
    limit, shown = self._limits.num_robot_steps, self._limits.num_panels
    every = max(min(len(steps), limit) // max(shown, 1), 1)
    chosen = Chosen(shown, every)
    read = self._held_out.read_steps(policy, steps, limit)
    result = action_accuracy.evaluate(policy, chosen.watch(read))
    space = policy.action_tokenizer.space
    return result, chosen.panels(space, result.recorded, result.decoded)


def moved(
  groups: Sequence[Mapping[str, Any]], values: Sequence[str]
) -> list[dict[str, Any]]:
  """Puts sources where they are now.

  Args:
    groups: fields of sources, by name.
    values: NAME=FOLDER each.

  Raises:
    UserError: a value of another form, or no source of that name.
  """
  known = [name for group in groups for name in group]
  places = {}
  for value in values:
    name, _, folder = value.partition("=")
    if not folder:
      raise UserError(
        f"got {value!r} for --paths, expected NAME=FOLDER, such as "
        f"{known[0]}=/new/place"
      )
    if name not in known:
      raise unknown_name("a source of --paths", name, known)
    places[name] = {"path": folder}
  return [
    {name: fields | places.get(name, {}) for name, fields in group.items()}
    for group in groups
  ]

"""Held-out data, measured while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from rt2_jax.actions import ActionTokenizer
from rt2_jax.evaluators import action_accuracy, vqa
from rt2_jax.input_pipeline import examples, in_order
from rt2_jax.input_pipeline.step_index import StepSource
from rt2_jax.input_pipeline.web import WebSource
from rt2_jax.policy import Policy
from rt2_jax.train_config import TrainConfig


class Evaluation:
  """Every source's held-out split, opened once; call it with parameters."""

  def __init__(
    self,
    config: TrainConfig,
    action_tokenizers: Mapping[str, ActionTokenizer],
    mesh: Mesh,
  ):
    """Opens the splits, so that a missing one stops a run at its start.

    Args:
      config: whose sources and `evaluation` are used.
      action_tokenizers: of the robot sources.
      mesh: where the parameters live.

    Raises:
      UserError: no such split, or bad data.
    """
    self._config = config.evaluation
    prompt = config.make_prompt()
    self._max_skipped = config.loader.max_skipped
    reading = config.loader.index_folder, config.loader.max_skipped
    spec, specs = config.observation.spec, config.observation_specs()
    self._steps = {
      name: examples.open_robot(
        source,
        source.eval_split,
        action_tokenizers[name],
        prompt,
        specs[name],
        *reading,
      )
      for name, source in config.sources.items()
    }
    self._questions = {
      name: examples.open_web(source, source.eval_split, prompt, spec, *reading)
      for name, source in config.web.items()
      if source.eval_split
    }
    self._policies = {
      name: Policy(
        config.model, None, prompt, action_tokenizer, specs[name], mesh
      )
      for name, action_tokenizer in action_tokenizers.items()
    }
    self._answering = Policy(config.model, None, prompt, None, spec, mesh)

  @property
  def sources(self) -> dict[str, StepSource | WebSource]:
    """The held-out data, by the source's name."""
    opened = {**self._steps, **self._questions}
    return {name: each.source for name, each in opened.items()}

  def __call__(self, params: Any) -> dict[str, float]:
    """`{source}/{metric}` -> number; the same on every process.

    Every process reads the same examples and computes its devices' part.
    """
    metrics = {}
    for name, policy in self._policies.items():
      policy.params = params
      steps = in_order.read_steps(
        self._steps[name],
        policy.model.img.image_size,
        self._config.batch_size,
        self._config.num_steps,
        self._max_skipped,
      )
      result = action_accuracy.evaluate(policy, steps).metrics()
      metrics |= {f"{name}/{key}": value for key, value in result.items()}
    self._answering.params = params
    for name, source in self._questions.items():
      questions = in_order.read_questions(
        source,
        self._answering.model.img.image_size,
        self._config.batch_size,
        self._config.num_questions,
        self._max_skipped,
      )
      result = vqa.evaluate(self._answering, questions)
      metrics |= {f"{name}/{key}": value for key, value in result.items()}
    return metrics

"""Measures a policy: from image files on the host to chunks of actions.

Shapes: B robots of a call, F images of each, L tokens of an answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from rt2_jax import decode, sharding
from rt2_jax.benchmarks import frames, meters, synthetic
from rt2_jax.benchmarks.frames import Shown
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.compiler_options import ACTING, options_for
from rt2_jax.evaluators.action_accuracy import ActionAccuracy
from rt2_jax.held_params import as_read, held_params
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.models.vlm import VLM
from rt2_jax.observation import Observation, to_batch
from rt2_jax.policy import Policy, make_prompts, one_device
from rt2_jax.robot_policy import RobotPolicy
from rt2_jax.train_config import TrainConfig, config_hash, with_defaults
from rt2_jax.weights import export
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

_WARM_UP = 3  # calls, the first of which compile


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is measured.

  Attributes:
    policy: on one device.
    shown: what its robots see, in order.
    write: writes the folder that transformers loads.
  """

  policy: Policy
  shown: Sequence[Shown]
  write: Callable[[pathlib.Path], None]

  @classmethod
  def of_config(cls, config: TrainConfig) -> Subject:
    """Makes a random policy of a config's sizes, which sees noise."""
    policy = random_policy(config)

    def write(folder: pathlib.Path) -> None:
      params = jax.tree.map(np.float32, random_params(config))
      meta = synthetic.meta(config)
      text = policy.prompt.tokenizer.model
      export.to_huggingface(params, config.model, meta, text, folder)

    return cls(policy, frames.noise(policy.observation), write)

  @classmethod
  def of_run(cls, workdir: str) -> tuple[Subject, dict[str, Any]]:
    """Loads a run's newest policy, which sees its own evaluation split.

    Returns:
      It, and JSON values that say which it is.

    Raises:
      UserError: no run with one robot source there, or bad data.
    """
    stored = StoredCheckpoint.open(workdir)
    policy = Policy.from_checkpoint(workdir, step=stored.step)
    meta = CheckpointMeta.from_dict(stored.meta)
    (source,) = meta.action_tokenizers
    fields = with_defaults(meta.config)["sources"][source]
    shown = frames.recorded(SourceConfig(**fields), policy)

    def write(folder: pathlib.Path) -> None:
      stored.check_merged()
      export.stored_to_huggingface(stored, folder)

    name = {
      "run": pathlib.PurePath(workdir).name,
      "step": stored.step,
      "config_hash": config_hash(meta.config),
      "horizon": policy.action_tokenizer.horizon,
    }
    return cls(policy, shown, write), name


def random_policy(config: TrainConfig) -> Policy:
  """Makes a policy with the config's sizes and random parameters."""
  prompt, action_tokenizers = synthetic.words(config)
  params = as_read(random_params(config), one_device())
  actions = next(iter(action_tokenizers.values()))
  return Policy(config.model, params, prompt, actions, config.observation.spec)


def random_params(config: TrainConfig) -> dict:
  """Draws parameters of the config's sizes, the same at every call."""
  return synthetic.params(held_params(config.model))


def action_seconds(policy: RobotPolicy, robots: int, repeats: int) -> float:
  """Takes the median time of a call that serves so many robots.

  Args:
    policy: in JAX or PyTorch.
    robots: served by one call.
    repeats: timed calls.
  """
  shown = frames.noise(policy.observation)
  seen = [one.decode() for one in frames.robots_at(shown, robots, 0)]
  return meters.seconds(lambda: policy.act(seen), repeats)


class Stopwatch:
  """Times parts of a call, each to its end on the device."""

  def __init__(self):
    self._ms: dict[str, list[float]] = {}

  def time(self, part: str, call: Callable[[], Any]) -> Any:
    """Returns what the call returns."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    self._ms.setdefault(part, []).append(1e3 * (time.perf_counter() - start))
    return result

  def percentiles(self) -> dict[str, dict[str, float]]:
    """Summarizes each part's milliseconds, without the first calls."""
    return {
      part: meters.percentiles(times[_WARM_UP:])
      for part, times in self._ms.items()
    }


class Parts:
  """The parts of a policy's call, each compiled alone.

  `Policy` compiles all of them into one program, so that `call` may take less
  time than their sum.
  """

  def __init__(self, policy: Policy):
    """Takes a policy that acts without a plan."""
    several = policy.observation.several_cameras
    writing = policy.action_tokenizer.writing

    def compiled(function: Callable, *static: Any) -> Callable:
      return jax.jit(
        functools.partial(function, policy.model, *static),
        compiler_options=options_for(policy.mesh, ACTING),
      )

    self._policy = policy
    self._image = compiled(make_prompts, several)
    self._prefill = compiled(_prefill)
    self._verify = compiled(_verify, writing)

  def ids(
    self,
    observations: Sequence[Observation],
    drafts: Sequence[np.ndarray | None],
    watch: Stopwatch,
  ) -> np.ndarray:
    """Decodes the tokens of B chunks, int32[B, L], and times the parts."""
    policy, mesh = self._policy, self._policy.mesh

    def words():
      seen = to_batch(observations, policy.observation)
      ids = np.stack([policy.action_tokenizer.draft(d) for d in drafts])
      return (seen.image, seen.image_size, *policy.prompts(seen)), ids

    columns, ids = watch.time("words", words)
    with sharding.scope(mesh):
      prompts = watch.time(
        "image",
        lambda: self._image(*sharding.same_rows_to_devices(columns, mesh)),
      )
      hidden, state = watch.time(
        "prefill", lambda: self._prefill(policy.params, prompts, ids)
      )
      actions = watch.time(
        "passes", lambda: self._verify(policy.params, hidden, state, ids)
      )
    return np.asarray(actions.ids)


def _prefill(model, params, prompts, ids):
  return VLM(model).apply(
    {"params": params},
    *prompts,
    draft=ids[:, :-1],
    answer_len=ids.shape[1] - 1,
    method="prefill",
  )


def _verify(model, writing, params, hidden, state, ids):
  grammar = writing.grammar()
  columns = decode.columns_of(ids, grammar)
  return decode.verify(VLM(model), params, hidden, state, columns, grammar)


def measure(subject: Subject, robots: int, repeats: int) -> dict[str, Any]:
  """Times calls that serve so many robots, each drafted by its last chunk.

  Returns:
    `passes` on average over the robots, and percentiles in milliseconds of:
    jpeg: decoding the robots' image files;
    words, image, prefill, passes: the parts, see `Parts`; the first pass's
      draft is read within the prefill. None of a policy that plans;
    call: `Policy.decide`, where all parts are one program.
  """
  policy, watch = subject.policy, Stopwatch()
  parts = None if policy.prompt.plan_length else Parts(policy)
  drafts: list[np.ndarray | None] = [None] * robots
  passes = []
  for step in range(_WARM_UP + repeats):
    shown = frames.robots_at(subject.shown, robots, step)
    seen = watch.time("jpeg", lambda shown=shown: [s.decode() for s in shown])
    if parts:
      parts.ids(seen, drafts, watch)
    decision = watch.time(
      "call", functools.partial(policy.decide, seen, drafts)
    )
    drafts = list(decision.actions)
    passes.append(decision.passes.mean())
  times = watch.percentiles()
  return {
    "robots": robots,
    "action_ms": times["call"]["p50"],
    "actions_per_s": round(1e3 * robots / times["call"]["p50"], 1),
    "passes": round(float(np.mean(passes[_WARM_UP:])), 2),
    "ms": times,
  }


@contextlib.contextmanager
def in_torch(subject: Subject) -> Iterator[RobotPolicy]:
  """Opens the exported policy, for which transformers' `generate` acts."""
  from rt2_jax.pytorch.policy import TorchPolicy

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name) / "model"
    subject.write(folder)
    yield TorchPolicy.from_folder(folder)


@contextlib.contextmanager
def in_int8(subject: Subject) -> Iterator[RobotPolicy]:
  """Opens the policy with matrices of 8 bits."""
  yield subject.policy.in_int8()


# What `compare` compares with.
OTHERS = {"torch": in_torch, "int8": in_int8}


def compare(
  subject: Subject, other: RobotPolicy, robots: int, repeats: int
) -> dict[str, Any]:
  """Times another policy of the same model, in the same process.

  Args:
    subject: whose actions are expected.
    other: policy, to be timed.
    robots: that share a call.
    repeats: timed calls.

  Returns:
    Percentiles in milliseconds of `call`; `same_chunks`, the fraction of
    chunks that are equal in every number; and `within_2_bins`, the fraction of
    actions that are near in every dimension, as evaluation counts them.
  """
  watch, found, expected = Stopwatch(), [], []
  for step in range(_WARM_UP + repeats):
    shown = frames.robots_at(subject.shown, robots, step)
    seen = [one.decode() for one in shown]
    found += list(watch.time("call", functools.partial(other.act, seen)))
    expected += list(subject.policy.act(seen))
  chunks = np.stack(found), np.stack(expected)
  accuracy = ActionAccuracy(
    subject.policy.action_tokenizer, chunks[1], chunks[0], None
  )
  return {
    "ms": watch.percentiles(),
    "same_chunks": round(float((chunks[0] == chunks[1]).all((1, 2)).mean()), 4),
    "within_2_bins": round(accuracy.near, 4),
  }

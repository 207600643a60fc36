"""The flag --policy of launch/rollout.py: what a value names, and how it acts.

A value is a baseline of the benchmark, a training run's workdir, a folder that
`launch/convert.py to_hf` wrote, an import path such as my_lab.policy:act, or
the address of a service, such as ws://127.0.0.1:8000.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rt2_jax import import_path, shipped, storage
from rt2_jax.checkpoint_meta import ROBOT_FILE, CheckpointMeta
from rt2_jax.errors import UserError
from rt2_jax.observation import ObservationSpec
from rt2_jax.rollouts import runner
from rt2_jax.rollouts.trial import Act, Baseline, Benchmark, Trial

_SERVICE = ("ws://", "wss://")


@dataclasses.dataclass(frozen=True)
class Tried:
  """A policy with what the report says of it.

  Attributes:
    what: in words.
    load: gives the policy; None for the scripted expert.
    drafted: whether it also takes each robot's last chunk, see `runner.run`.
    spec: what the policy reads of an observation; None: all that is shown.
    expert: the trial that the expert carries out, given the real one.
    config_hash: of a run's config; "" for any other policy.
    web: accuracy on each web source, where it was measured.
    web_before: likewise, of the run that training started from.
  """

  what: str
  load: Callable[[], Act] | None
  drafted: bool = False
  spec: ObservationSpec | None = None
  expert: Callable[[Trial], Trial] | None = None
  config_hash: str = ""
  web: Mapping[str, float] = dataclasses.field(default_factory=dict)
  web_before: Mapping[str, float] = dataclasses.field(default_factory=dict)


def names(values: Sequence[str], benchmark: Benchmark) -> dict[str, str]:
  """Names the policies as files and tables call them.

  Returns:
    value by name: a baseline's own, a folder's, or the import path with a dot.
    What ships is found from anywhere.

  Raises:
    UserError: nothing to try, one name twice, or a value that names nothing.
  """
  if not values:
    raise UserError("got nothing to try, expected --policy")
  values = [shipped.find(value) for value in values]
  named = [_name(value, benchmark) for value in values]
  if len(set(named)) < len(named):
    raise UserError(
      f"got names {named}, expected another one for each policy: a run is "
      "called after its folder; rename it"
    )
  return dict(zip(named, values, strict=True))


def _name(value: str, benchmark: Benchmark) -> str:
  if value in benchmark.baselines:
    return value
  if value.startswith(_SERVICE):
    place = value.partition("://")[2].strip("/")
    return place.replace(":", "_").replace("/", "_")  # it names a file
  if import_path.is_import_path(value):
    return value.replace(":", ".")
  if not storage.locate(value, "--policy").exists():
    close = difflib.get_close_matches(value, benchmark.baselines, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(
      f"got {value!r} for --policy, expected a run's workdir, a folder of "
      "launch/convert.py to_hf, an import path such as my_lab.policy:act, a "
      "service such as ws://127.0.0.1:8000, or "
      f"a baseline: {', '.join(benchmark.baselines) or 'none here'}{hint}"
    )
  name = storage.locate(value, "--policy").resolve().name
  if name in benchmark.baselines:
    raise UserError(
      f"got --policy={value}, whose name {name!r} is a baseline's, expected "
      "another one; rename the folder"
    )
  return name


def find(
  value: str,
  benchmark: Benchmark,
  trials: Sequence[Trial],
  source: str | None,
  step: int | None,
) -> Tried:
  """Finds a policy, without reading its parameters.

  Args:
    value: of the flag.
    benchmark: what the policy is tried on.
    trials: likewise.
    source: robot source whose actions to use, where there are several.
    step: checkpoint of a run; default: the newest.

  Raises:
    UserError: no policy there, one for another robot, or instructions that are
      longer than its prompt.
  """
  if value in benchmark.baselines:
    return _baseline(benchmark.baselines[value])
  if value.startswith(_SERVICE):
    return _served(value, benchmark)
  if import_path.is_import_path(value):
    return _imported(value)
  if (storage.locate(value, "--policy") / ROBOT_FILE).is_file():
    return _exported(value, benchmark, trials, source)
  return _run(value, benchmark, trials, source, step)


def _baseline(baseline: Baseline) -> Tried:
  load = (lambda: baseline.act) if baseline.act else None
  return Tried(baseline.description, load, expert=baseline.expert)


def _imported(path: str) -> Tried:
  """Finds a function, or an object whose method `act` is one.

  It maps B observations to float32[B, H, D]. An attribute `observation`, an
  ObservationSpec, tells what it reads; without one it gets all that is shown.
  """
  found = import_path.load(path, "--policy")
  act = getattr(found, "act", found)
  if not callable(act):
    raise UserError(
      f"got {path!r} for --policy, which is of type {type(found).__name__}, "
      "expected a function: observations of B robots -> float32[B, H, D]"
    )
  spec = getattr(found, "observation", None)
  return Tried(path, lambda: act, spec=spec)


def _served(url: str, benchmark: Benchmark) -> Tried:
  """Finds the policy of a service.

  Raises:
    UserError: nobody there, or a policy for another robot.
  """
  from rt2_jax.robot_client import ServedPolicy
  from rt2_jax.serving.description import read_token

  policy = ServedPolicy(url, read_token())
  said, space = policy.metadata, benchmark.action_space
  acts = list(zip(said["action_names"], said["action_units"], strict=True))
  expected = [(d.name, d.unit) for d in space.dimensions]
  if acts != expected:
    raise UserError(
      f"got {url}, which acts with {acts}, expected {expected}; serve a policy "
      f"for {benchmark.title or 'this benchmark'}"
    )
  state = benchmark.spec.state
  if said["state_names"] and (
    not state or said["state_names"] != list(state.names)
  ):
    raise UserError(
      f"got {url}, which reads the state {said['state_names']}, expected "
      f"{list(state.names) if state else 'none'}; serve another policy"
    )
  spec = ObservationSpec(
    tuple(said["cameras"]),
    history=said["history"],
    state=state if said["state_names"] else None,
  )
  runner.check_spec(spec, benchmark.spec)
  what = f"{said['checkpoint']}, step {said['checkpoint_step']}, served"
  return Tried(what, lambda: policy.act, spec=spec)


def _exported(
  folder: str,
  benchmark: Benchmark,
  trials: Sequence[Trial],
  source: str | None,
) -> Tried:
  """Finds the policy of an exported folder, in PyTorch."""
  from rt2_jax.tokenizer import Tokenizer

  path = storage.locate(folder, "--policy")
  robot = json.loads((path / ROBOT_FILE).read_text(encoding="utf-8"))
  text = Tokenizer.from_file(path / "tokenizer.model")
  spec = _check_fit(folder, robot, text, source, benchmark, trials)

  def load() -> Act:
    from rt2_jax.pytorch.policy import TorchPolicy

    return TorchPolicy.from_folder(folder, source).plan_and_act

  return Tried(f"{folder}, PyTorch", load, spec=spec)


def _run(
  workdir: str,
  benchmark: Benchmark,
  trials: Sequence[Trial],
  source: str | None,
  step: int | None,
) -> Tried:
  """Finds the policy of a training run."""
  # Baselines need no JAX.
  from rt2_jax import platforms
  from rt2_jax.checkpoint import Checkpoints
  from rt2_jax.tokenizer import Tokenizer
  from rt2_jax.train_config import config_hash

  platforms.prepare()
  checkpoints = Checkpoints.open_run(workdir)
  # Training may save another one while this plays.
  step = checkpoints.latest_step() if step is None else step
  meta, model_file = checkpoints.restore_meta(step)
  checkpoints.close()
  text = Tokenizer(model_file)
  spec = _check_fit(workdir, meta, text, source, benchmark, trials)

  def load() -> Act:
    from rt2_jax.policy import Policy

    return Policy.from_checkpoint(workdir, source, step).decide

  start = meta["config"].get("pretrained")
  return Tried(
    f"{storage.locate(workdir, '--policy')}, step {step}",
    load,
    drafted=True,
    spec=spec,
    config_hash=config_hash(meta["config"]),
    web=_web_accuracy(workdir, step),
    web_before=_web_accuracy(start) if start and isinstance(start, str) else {},
  )


def _check_fit(
  folder: str,
  meta: Mapping[str, Any],
  text: Any,
  source: str | None,
  benchmark: Benchmark,
  trials: Sequence[Trial],
) -> ObservationSpec:
  """Checks that a policy can act in a benchmark's trials.

  Args:
    folder: of the policy.
    meta: what the folder says of itself.
    text: the policy's `Tokenizer`.
    source: robot source whose actions to use.
    benchmark: gives the actions and observations.
    trials: give the instructions.

  Returns:
    What the policy reads of an observation.

  Raises:
    UserError: other actions or observations than the benchmark's, or an
      instruction that is longer than the prompt.
  """
  described = CheckpointMeta.from_dict(meta)
  actions, spec = described.robot(source)
  acts = actions.space.names if actions else ()
  if acts != benchmark.action_space.names:
    raise UserError(
      f"got {folder}, which acts with {acts or 'no robot'}, expected "
      f"{benchmark.action_space.names}; pass the run of a model that was "
      f"trained for {benchmark.title or 'this benchmark'}"
    )
  runner.check_spec(spec, benchmark.spec)
  prompt = described.make_prompt(text, source)
  state = [0] * (len(spec.state) if spec.state else 0)
  for trial in trials:
    prompt.robot_prefix(trial.instruction, state)
  return spec


def _web_accuracy(workdir: str, step: int | None = None) -> dict[str, float]:
  """Reads what launch/evaluate.py measured of a run on web sources.

  Args:
    workdir: of the run; one that was never evaluated has no accuracies.
    step: of the checkpoint that was measured; None for any.
  """
  folder = storage.locate(workdir, "--policy") / "evaluation"
  measured = {
    path.stem: json.loads(path.read_text())
    for path in sorted(folder.glob("*.json"))
  }
  return {
    name: metrics["accuracy"]
    for name, metrics in measured.items()
    if step in (None, metrics.get("step")) and "accuracy" in metrics
  }

"""The training loop: sources to batches to steps, logged and checkpointed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from rt2_jax import (
  consensus,
  optimizer,
  platforms,
  resume,
  run_log,
  storage,
  train_data,
)
from rt2_jax import workdir as claim
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.checkpoint import Checkpoints, versions
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.errors import Stopped
from rt2_jax.evaluators.held_out import Evaluation
from rt2_jax.input_pipeline.loader import Loader
from rt2_jax.interrupts import StopSignals
from rt2_jax.profiling import Profiler, check_steps
from rt2_jax.progress import Progress
from rt2_jax.run_log import RunLog
from rt2_jax.saving import Saver
from rt2_jax.speed import Clock
from rt2_jax.tpu import train_step
from rt2_jax.tpu.peak_flops import PEAK_FLOPS
from rt2_jax.train_config import TrainConfig, with_defaults
from rt2_jax.train_state import Trainer, TrainState
from rt2_jax.watchdog import Watchdog
from rt2_jax.weights import lora_base

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run, opened and checked.

  Attributes:
    config: of the run.
    mesh: of all devices.
    action_tokenizers: by robot source.
    batches: this process's loader.
    trainer: the step.
    evaluation: held-out data; None when the config measures nothing.
    meta: what its checkpoints say of it.
  """

  config: TrainConfig
  mesh: Mesh
  action_tokenizers: Mapping[str, ActionTokenizer]
  batches: Loader
  trainer: Trainer
  evaluation: Evaluation | None
  meta: CheckpointMeta

  @classmethod
  def open(
    cls,
    config: TrainConfig,
    fields: Mapping[str, Any],
    at: Callable[[str], None],
  ) -> Run:
    """Opens the data and describes the run; compiles nothing.

    Args:
      config: of the run.
      fields: of its config file.
      at: is told what an evaluation does.

    Raises:
      UserError: anything wrong with config or data.
    """
    mesh = config.make_mesh(jax.devices())
    tokenizers = config.action_tokenizers()
    batches = train_data.make_loader(config, tokenizers, mesh)
    trainer = config.make_trainer(tokenizers, mesh)
    trainer.abstract_state()  # checks patterns and mesh
    evaluation = None
    if config.evaluation.every:
      evaluation = Evaluation(config, tokenizers, mesh, at)
      if config.keep_best:
        evaluation.check_metric(config.keep_best.removeprefix("-"))
    held_out = evaluation.sources if evaluation else {}
    data = train_data.fingerprints(config, batches, held_out)
    meta = make_meta(config, fields, tokenizers, data)
    return cls(config, mesh, tokenizers, batches, trainer, evaluation, meta)

  def start(self, checkpoints: Checkpoints) -> tuple[Run, TrainState, dict]:
    """Restores or initializes the state.

    Returns:
      The run, its description completed by the base of a LoRA run; the state;
      and what the checkpoint kept of the log, see `Progress`.
    """
    config, trainer = self.config, self.trainer
    state, window = resume.restore_or_init(
      config, trainer, trainer.abstract_state(), checkpoints, self.meta
    )
    if not config.model.adapted:
      return self, state, dict(window)
    frozen = trainer.frozen_of(state.params)
    record = lora_base.record(config.pretrained, frozen, config.seed)
    meta = dataclasses.replace(self.meta, base=record)
    return dataclasses.replace(self, meta=meta), state, dict(window)


def train(
  fields: Mapping[str, Any],
  workdir: str | os.PathLike,
  profile_steps: range = range(0),
) -> TrainState:
  """Trains from the newest checkpoint in `workdir`, or from the start.

  A run that was killed goes on where it stood, with the same batches and the
  same augmentation: its parameters end bit for bit as without the kill. Each of
  several processes calls this and loads its own rows of every batch.

  Args:
    fields: of a config file.
    workdir: gets config.json, checkpoints/ and tensorboard/.
    profile_steps: steps, counted from 1, that are traced.

  Returns:
    The state after the last step.

  Raises:
    UserError: anything wrong with config, data or workdir, before the first
      step where it can be known then; or training has diverged.
    Stopped: a signal asked for it; the last step is saved.
  """
  workdir = storage.locate(workdir, "--workdir")
  platforms.prepare()  # before JAX starts
  with consensus.together():
    config = TrainConfig.from_dict(fields)
    check_steps(profile_steps, config.num_steps)
  with contextlib.ExitStack() as stack:
    watchdog = stack.enter_context(Watchdog(config.watchdog))
    watchdog.at("opening the data", patient=True)
    with consensus.together():
      run = Run.open(config, fields, watchdog.at)
    watchdog.at("comparing the processes")
    # With the defaults: a field that one process states is named on both.
    described = run.meta.to_dict() | {"config": with_defaults(fields)}
    consensus.check_equal({**described, "code": consensus.code()})
    consensus.check_shared(workdir)
    claim.check(workdir, fields)
    stop = stack.enter_context(StopSignals())
    checkpoints = stack.enter_context(
      Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    )
    watchdog.at("restoring or initializing the state")
    run, state, window = run.start(checkpoints)
    stack.enter_context(claim.held(workdir, fields))
    folder = workdir / "tensorboard"
    traced = Profiler(folder, profile_steps, int(state.step))
    profiler = stack.enter_context(traced)
    watched = watchdog, stop, profiler
    return _loop(run, state, window, checkpoints, workdir, *watched)


def _loop(
  run: Run,
  state: TrainState,
  window: Mapping[str, Any],
  checkpoints: Checkpoints,
  workdir: storage.Path,
  watchdog: Watchdog,
  stop: StopSignals,
  profiler: Profiler,
) -> TrainState:
  """Takes the steps from `state` to the end; arguments as in `train`."""
  config, start = run.config, int(state.step)
  saver = Saver(config, checkpoints, workdir, start, window.get("best", {}))
  with contextlib.ExitStack() as stack:
    log_start(config, state, run.mesh)
    clock = Clock(start, window, mfu_at_one_step_per_s(run))
    log = open_log(run, workdir, start, clock)
    stack.enter_context(contextlib.closing(log))
    progress = make_progress(run, log, start, window, workdir, clock)
    if stop.reached(start):
      raise Stopped(f"stopped on request at step {start}")
    step_fn = run.trainer.compile_step()
    steps = train_data.on_devices(
      run.batches, start, config.num_steps, run.mesh
    )
    watchdog.at(f"compiling, and step {start + 1}")
    stack.enter_context(contextlib.closing(steps))
    for step, batch in clock.inputs(steps):
      done = step + 1
      with profiler.step(done, state):
        state, metrics = step_fn(state, batch)
      progress.add(done, metrics)
      last = done == config.num_steps
      # Before the checkpoint: a run killed in between repeats it.
      if run.evaluation and (done % config.evaluation.every == 0 or last):
        progress.check()
        with clock.spent_on("other"):
          found = run.evaluation(state.acting)
          progress.add_evaluation(done, found.metrics, found.drawings)
        saver.measured(done, found.metrics)
      stops = stop.reached(done) and not last
      if saver.due(done) or stops:
        watchdog.at(f"saving step {done}")
        window = progress.before_save(done) | {"best": saver.best}
        items = *run.trainer.to_items(state), run.meta.to_dict()
        model = config.tokenizer.model
        write = functools.partial(checkpoints.save, done, *items, model, window)
        with clock.spent_on("other"):
          saver.save(done, write, needed=last or stops)
      if stops:
        raise Stopped(
          f"stopped on request after step {done}, which is saved; start the "
          "same command again to go on"
        )
      watchdog.at(f"step {done + 1}")
  return state


def mfu_at_one_step_per_s(run: Run) -> float:
  """Computes the MFU of one step per second; 0 for unknown devices."""
  peak = PEAK_FLOPS.get(run.mesh.devices.flat[0].device_kind)
  if peak is None:
    return 0.0
  return train_step.useful_flops(run.config) / (run.mesh.size * peak)


def open_log(
  run: Run, workdir: storage.Path, start: int, clock: Clock
) -> RunLog:
  """Opens the log of a run, which process 0 writes."""
  if jax.process_index():
    return RunLog([])
  measures = ["train/loss"]
  if run.evaluation:
    measures += [f"eval/{name}" for name in run.evaluation.headlines]
  return run_log.open_log(
    workdir,
    start,
    clock.first_start,
    run.meta.config,
    measures,
    run.config.tracking,
  )


def make_progress(
  run: Run,
  log: RunLog,
  start: int,
  window: Mapping[str, Any],
  workdir: storage.Path,
  clock: Clock,
) -> Progress:
  """Makes the log of a run; bad steps leave the names of their records."""
  names = run.config.source_names
  return Progress(
    run.config,
    {name: t.space for name, t in run.action_tokenizers.items()},
    log,
    start,
    window,
    lambda done: train_data.write_records(
      run.batches, names, done - 1, workdir
    ),
    clock,
  )


def log_start(config: TrainConfig, state: TrainState, mesh: Mesh):
  """Logs what is about to run, and that compiling comes first."""
  _LOG.info(
    "%.1f M parameters on %d devices, mesh %s, %d sources; from step %d of %d",
    optimizer.count_parameters(state.params) / 1e6,
    mesh.size,
    dict(mesh.shape),
    len(config.source_names),
    int(state.step),
    config.num_steps,
  )
  _LOG.info("compiling the step; the first one takes longest")


def make_meta(
  config: TrainConfig,
  fields: Mapping[str, Any],
  action_tokenizers: Mapping[str, ActionTokenizer],
  data: Mapping[str, Any],
) -> CheckpointMeta:
  """Describes the run for its checkpoints."""
  return CheckpointMeta(
    config=dict(fields),
    model=config.model,
    prompt=dataclasses.asdict(config.prompt),
    prompts={
      name: source.prompt
      for name, source in config.sources.items()
      if source.prompt
    },
    action_tokenizers=action_tokenizers,
    observation=config.observation.spec,
    observations=config.observation_specs(),
    statistics={
      name: source.read_statistics()
      for name, source in config.sources.items()
      if source.statistics
    },
    tokenizer_sha256=config.tokenizer.sha256,
    data=data,
    versions=versions(),
    control_hz={
      name: source.control_hz
      for name, source in config.sources.items()
      if source.control_hz
    },
  )

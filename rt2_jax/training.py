"""The training loop: sources to batches to steps, logged and checkpointed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rt2_jax import (
  consensus,
  event_files,
  optimizer,
  platforms,
  sharding,
  storage,
  trees,
)
from rt2_jax import workdir as claim
from rt2_jax.actions import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.checkpoint import Checkpoints, versions
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.differences import differing, to_json
from rt2_jax.errors import UserError
from rt2_jax.evaluation import Evaluation
from rt2_jax.input_pipeline import examples, loader, mixture
from rt2_jax.progress import Progress
from rt2_jax.saved_step import Damaged
from rt2_jax.train_config import TrainConfig, with_defaults
from rt2_jax.train_state import Trainer, TrainState
from rt2_jax.weights import lora_base

_LOG = logging.getLogger(__name__)

# What a run that goes on may not change.
_SAME = ("model", "action_tokenizers", "observation", "observations")


def train(fields: Mapping[str, Any], workdir: str | os.PathLike) -> TrainState:
  """Trains from the newest checkpoint in `workdir`, or from the start.

  A run that was killed goes on where it stood, with the same batches and the
  same augmentation: its parameters end bit for bit as without the kill. Each of
  several processes calls this and loads its own rows of every batch.

  Args:
    fields: of a config file.
    workdir: gets config.json, checkpoints/ and tensorboard/.

  Returns:
    The state after the last step.

  Raises:
    UserError: anything wrong with config, data or workdir, before the first
      step where it can be known then; or training has diverged.
  """
  workdir = storage.locate(workdir, "--workdir")
  platforms.prepare()  # before JAX starts
  with consensus.together():
    config = TrainConfig.from_dict(fields)
    mesh = config.make_mesh(jax.devices())
    action_tokenizers = config.action_tokenizers()
    batches = make_loader(config, action_tokenizers, mesh)
    trainer = config.make_trainer(action_tokenizers, mesh)
    abstract = trainer.abstract_state()
    evaluation = make_evaluation(config, action_tokenizers, mesh)
    data = fingerprints(config, batches, evaluation)
    meta = make_meta(config, fields, action_tokenizers, data)
  # With the defaults: a field that one process states is named on both.
  described = meta.to_dict() | {"config": with_defaults(fields)}
  consensus.check_equal({**described, "code": consensus.code()})
  consensus.check_shared(workdir)
  claim.check(workdir, fields, with_defaults)
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      Checkpoints(workdir / "checkpoints", config.keep_checkpoints)
    )
    state, window = restore_or_init(
      trainer, abstract, checkpoints, meta, config.pretrained
    )
    if config.model.adapted:
      frozen = trainer.frozen_of(state.params)
      record = lora_base.record(config.pretrained, frozen, config.seed)
      meta = dataclasses.replace(meta, base=record)
    stack.enter_context(claim.held(workdir, fields, with_defaults))
    start = int(state.step)
    log_start(config, state, mesh)
    first = jax.process_index() == 0
    log = event_files.open_log(workdir / "tensorboard", start, first)
    writer = stack.enter_context(log)
    spaces = {name: t.space for name, t in action_tokenizers.items()}
    progress = Progress(config, spaces, writer, start, window)
    step_fn = trainer.compile_step()
    steps = on_devices(batches, start, config.num_steps, mesh)
    for step, batch in stack.enter_context(contextlib.closing(steps)):
      state, metrics = step_fn(state, batch)
      done = step + 1
      progress.add(done, metrics)
      last = done == config.num_steps
      # Before the checkpoint: a run killed in between repeats it.
      if evaluation and (done % config.evaluation.every == 0 or last):
        progress.check()
        progress.add_evaluation(done, evaluation(state.acting))
      if done % config.checkpoint_every == 0 or last:
        window = progress.before_save(done)
        arrays = trainer.to_items(state)
        items = (*arrays, meta.to_dict(), config.tokenizer.model)
        checkpoints.save(done, *items, window)
  return state


def make_evaluation(
  config: TrainConfig,
  action_tokenizers: Mapping[str, ActionTokenizer],
  mesh: Mesh,
) -> Evaluation | None:
  """Held-out data, opened; None when the config measures nothing."""
  if not config.evaluation.every:
    return None
  return Evaluation(config, action_tokenizers, mesh)


def log_start(config: TrainConfig, state: TrainState, mesh: Mesh):
  """Says what is about to run, and that compiling comes first."""
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


def fingerprints(
  config: TrainConfig, batches: loader.Loader, evaluation: Evaluation | None
) -> dict[str, dict[str, Any]]:
  """Length and fingerprint of every source, by its name.

  Held-out data, where they are measured, are called "NAME, held out".
  """
  opened = dict(
    zip(config.source_names, (e.source for e in batches.examples), strict=True)
  )
  held_out = evaluation.sources if evaluation else {}
  opened |= {f"{name}, held out": s for name, s in held_out.items()}
  return {
    name: {"length": len(source), "fingerprint": source.fingerprint}
    for name, source in opened.items()
  }


def make_loader(
  config: TrainConfig,
  action_tokenizers: Mapping[str, ActionTokenizer],
  mesh: Mesh,
) -> loader.Loader:
  """This host's part of the mixture; opens and checks every source."""
  prompt = config.make_prompt()
  reading = config.loader.index_folder, config.loader.max_skipped
  specs, dropout = config.observation_specs(), config.observation.state_dropout
  robots = [
    examples.open_robot(
      source,
      source.split,
      action_tokenizers[name],
      prompt,
      specs[name],
      *reading,
      state_dropout=dropout,
      keep_numbers=False,
    )
    for name, source in config.sources.items()
  ]
  webs = [
    examples.open_web(
      source, source.split, prompt, config.observation.spec, *reading
    )
    for source in config.web.values()
  ]
  order = mixture.Mixture(
    sizes=tuple(len(e) for e in robots + webs),
    weights=config.weights(),
    seed=config.seed,
  )
  return loader.Loader(
    robots + webs,
    order,
    config.batch_size,
    sharding.host_rows(config.batch_size, mesh, config.microbatches),
    config.model.img.image_size,
    config.model.num_images,
    config.loader.num_threads,
    config.loader.max_skipped,
  )


def on_devices(
  batches: loader.Loader, start: int, stop: int, mesh: Mesh
) -> Iterator[tuple[int, Batch]]:
  """(step, global batch on the mesh) for steps start..stop-1."""
  for step, batch in enumerate(batches.batches(start, stop), start):
    yield (
      step,
      sharding.to_devices(batch, batches.rows, batches.batch_size, mesh),
    )


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
  )


def restore_or_init(
  trainer: Trainer,
  abstract: TrainState,
  checkpoints: Checkpoints,
  meta: CheckpointMeta,
  weights: str | Mapping[str, str],
) -> tuple[TrainState, Mapping[str, Any]]:
  """The newest good state of the run; or a fresh one, from `weights` if given.

  A damaged checkpoint is moved aside once an older one has been restored.

  Returns:
    The state, and the metrics that were not logged yet: see `Progress`.

  Raises:
    UserError: the checkpoint is of another model, tokenizer, action space or
      of other data; or all checkpoints are damaged.
  """
  steps = checkpoints.steps()
  if not steps:
    if not weights:
      return trainer.init_state(), {}
    params = read_weights(weights, trainer, abstract, meta)
    return trainer.state_from(params), {}
  damaged: dict[int, Damaged] = {}
  for step in reversed(steps):
    try:
      check_same(checkpoints, meta, _SAME, step)
      check_data(checkpoints, meta, step)
      items = trainer.to_items(abstract)
      found = checkpoints.restore_state(*items, step)
    except Damaged as error:
      damaged[step] = error
      continue
    for bad, error in damaged.items():
      place = checkpoints.set_aside(bad)
      _LOG.error("%s; it is now %s, going on from %d", error, place, step)
    count = jax.device_put(np.int32(step), abstract.step.sharding)
    items = count, found.params, found.opt_state
    frozen = None
    if trainer.model.adapted:
      frozen = read_base(weights, trainer, abstract, checkpoints, step)
    return trainer.from_items(*items, frozen), found.window
  raise UserError(
    f"got no checkpoint that is whole among {steps}: "
    f"{'; '.join(map(str, damaged.values()))}; repair one, or use another "
    "--workdir"
  )


def read_weights(
  weights: str | Mapping[str, str],
  trainer: Trainer,
  abstract: TrainState,
  meta: CheckpointMeta,
) -> Any:
  """Parameters to start from, placed on the mesh.

  Raises:
    UserError: they are of another model, or a run's of another tokenizer.
  """
  if lora_base.is_run(weights):
    run = Checkpoints.open_run(weights)
    model = trainer.model.without_adapters()
    check_same(run, dataclasses.replace(meta, model=model), ("model",))
  return lora_base.read(weights, trainer.model, abstract.params, trainer.seed)


def read_base(
  weights: str | Mapping[str, str],
  trainer: Trainer,
  abstract: TrainState,
  checkpoints: Checkpoints,
  step: int,
) -> Any:
  """Reads the base of a LoRA run again, and compares it.

  Raises:
    UserError: it is not the base that a checkpoint's adapters were trained on.
  """
  params = lora_base.read(weights, trainer.model, abstract.params, trainer.seed)
  stored, _ = checkpoints.restore_meta(step)
  flat, frozen = map(
    trees.flatten, (params, trainer.frozen_of(abstract.params))
  )
  lora_base.check(stored["base"], trees.unflatten({n: flat[n] for n in frozen}))
  return params


def check_same(
  checkpoints: Checkpoints,
  meta: CheckpointMeta,
  items: Sequence[str],
  step: int | None = None,
):
  """Compares what a checkpoint says of `items` and its tokenizer.

  Raises:
    UserError: one of them differs.
  """
  stored, _ = checkpoints.restore_meta(step)
  # Both in today's format, whichever release saved it.
  was = to_json(CheckpointMeta.from_dict(stored).to_dict())
  now = to_json(meta.to_dict())
  for item in (*items, "tokenizer_sha256"):
    found = list(differing(was[item], now[item], item, claim.FREE_FIELDS))
    if found:
      raise UserError(
        "got a checkpoint of another model or action space, which this config "
        f"cannot go on from: {'; '.join(found[:3])}; use another "
        "--workdir or config.pretrained"
      )


def check_data(checkpoints: Checkpoints, meta: CheckpointMeta, step: int):
  """Compares the data with those that a checkpoint was trained on.

  Raises:
    UserError: a source has another length or fingerprint.
  """
  stored, _ = checkpoints.restore_meta(step)
  kept = CheckpointMeta.from_dict(stored).data
  if not kept:
    _LOG.warning(
      "checkpoint %d keeps no fingerprints of its data: nothing to compare",
      step,
    )
    return
  for name in kept.keys() & meta.data.keys():
    was, now = kept[name], meta.data[name]
    if was != now:
      raise UserError(
        f"got {now['length']} examples with fingerprint {now['fingerprint']} "
        f"from source {name!r}, expected the {was['length']} with fingerprint "
        f"{was['fingerprint']} that checkpoint {step} was trained on; restore "
        "the data, or start a new run: another --workdir, with "
        "config.pretrained naming this one"
      )

"""The training loop: sources to batches to steps, logged and checkpointed."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
from jax.sharding import Mesh

from rt2_jax import checkpoint, optimizer, pretrained, sharding
from rt2_jax.actions import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.errors import UserError
from rt2_jax.evaluation import Evaluation
from rt2_jax.input_pipeline import examples, loader, mixture
from rt2_jax.progress import Progress
from rt2_jax.train_config import TrainConfig
from rt2_jax.train_state import Trainer, TrainState

_LOG = logging.getLogger(__name__)

# Fields that may change when a run goes on, wherever they stand: batches and
# model stay the same.
_FREE_FIELDS = (
  "remat",
  "topology",
  "mesh",
  "microbatches",
  "evaluation",
  "loader",
  "log_every",
  "checkpoint_every",
  "keep_checkpoints",
)


def train(fields: Mapping[str, Any], workdir: str | pathlib.Path) -> TrainState:
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
      step where it can be known then.
  """
  config = TrainConfig.from_dict(fields)
  workdir = pathlib.Path(workdir)
  mesh = config.make_mesh(jax.devices())
  tokenizers = config.action_tokenizers()
  batches = make_loader(config, tokenizers, mesh)
  trainer = config.make_trainer(tokenizers, mesh)
  abstract = trainer.abstract_state()
  evaluation = make_evaluation(config, tokenizers, mesh)
  meta = make_meta(config, fields, tokenizers)
  claim_workdir(workdir, fields)
  checkpoints = checkpoint.Checkpoints(
    workdir / "checkpoints", config.keep_checkpoints
  )
  state = restore_or_init(
    trainer, abstract, checkpoints, meta, config.pretrained
  )
  start = int(state.step)
  log_start(config, state, mesh)
  writer = tensorboardX.SummaryWriter(
    str(workdir / "tensorboard"),
    purge_step=start,
    write_to_disk=jax.process_index() == 0,
  )
  spaces = {name: t.space for name, t in tokenizers.items()}
  progress = Progress(config, spaces, writer, start)
  step_fn = trainer.compile_step()
  for step, batch in on_devices(batches, start, config.num_steps, mesh):
    state, metrics = step_fn(state, batch)
    done = step + 1
    progress.add(done, metrics)
    last = done == config.num_steps
    if done % config.checkpoint_every == 0 or last:
      checkpoints.save(done, *state.to_items(), meta, config.tokenizer.model)
    if evaluation and (done % config.evaluation.every == 0 or last):
      progress.add_evaluation(done, evaluation(state.acting))
  checkpoints.close()
  writer.close()
  return state


def make_evaluation(
  config: TrainConfig, tokenizers: Mapping[str, ActionTokenizer], mesh: Mesh
) -> Evaluation | None:
  """Held-out data, opened; None when the config measures nothing."""
  if not config.evaluation.every:
    return None
  return Evaluation(config, tokenizers, mesh)


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


def make_loader(
  config: TrainConfig, tokenizers: Mapping[str, ActionTokenizer], mesh: Mesh
) -> loader.Loader:
  """This host's part of the mixture; opens and checks every source."""
  prompt = config.make_prompt()
  reading = config.loader.index_folder, config.loader.max_skipped
  frames = config.model.num_frames
  robots = [
    examples.open_robot(
      source, source.split, tokenizers[name], prompt, frames, *reading
    )
    for name, source in config.sources.items()
  ]
  webs = [
    examples.open_web(source, source.split, prompt, frames, *reading)
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
  tokenizers: Mapping[str, ActionTokenizer],
) -> dict[str, Any]:
  """What a checkpoint says of itself; enough to act without the config."""
  return {
    "config": dict(fields),
    "model": dataclasses.asdict(config.model),
    "prompt": dataclasses.asdict(config.prompt),
    "action_tokenizers": {n: t.to_dict() for n, t in tokenizers.items()},
    "statistics": {
      name: source.read_statistics()
      for name, source in config.sources.items()
      if source.statistics
    },
    "tokenizer_sha256": config.tokenizer.sha256,
    "versions": checkpoint.versions(),
  }


def restore_or_init(
  trainer: Trainer,
  abstract: TrainState,
  checkpoints: checkpoint.Checkpoints,
  meta: Mapping[str, Any],
  weights: str | Mapping[str, str],
) -> TrainState:
  """The newest state of the run; or a fresh one, from `weights` if given.

  Raises:
    UserError: the checkpoint is of another model, tokenizer or action space.
  """
  if checkpoints.latest_step() is None:
    if not weights:
      return trainer.init_state()
    return trainer.state_from(read_weights(weights, trainer, abstract, meta))
  check_same(checkpoints, meta, ("model", "action_tokenizers"))
  step, acting, rest = checkpoints.restore_state(*abstract.to_items())
  step = jax.device_put(np.int32(step), abstract.step.sharding)
  return abstract.from_items(step, acting, rest)


def read_weights(
  weights: str | Mapping[str, str],
  trainer: Trainer,
  abstract: TrainState,
  meta: Mapping[str, Any],
) -> Any:
  """Parameters to start from, placed on the mesh.

  Raises:
    UserError: they are of another model, or a run's of another tokenizer.
  """
  if (
    isinstance(weights, str)
    and (pathlib.Path(weights) / "checkpoints").is_dir()
  ):
    run = checkpoint.Checkpoints.open_run(weights)
    check_same(run, meta, ("model",))
    return run.restore_params(abstract.params)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
  return pretrained.load(weights, trainer.model, shardings, seed=trainer.seed)


def check_same(
  checkpoints: checkpoint.Checkpoints,
  meta: Mapping[str, Any],
  items: Sequence[str],
):
  """
  Raises:
    UserError: what a checkpoint says of `items` or of its tokenizer differs.
  """
  stored, _ = checkpoints.restore_meta()
  for item in (*items, "tokenizer_sha256"):
    differences = list(differing(stored[item], to_json(meta[item]), item))
    if differences:
      raise UserError(
        "got a checkpoint of another model or action space, which this config "
        f"cannot go on from: {'; '.join(differences[:3])}; use another "
        "--workdir or config.pretrained"
      )


def claim_workdir(workdir: pathlib.Path, fields: Mapping[str, Any]):
  """Writes config.json, or checks that the one there asks for the same.

  Raises:
    UserError: the workdir belongs to a different experiment.
  """
  path = workdir / "config.json"
  if not path.exists():
    if jax.process_index():
      return  # the first process writes for all
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields, indent=2, sort_keys=True))
    return
  stored = json.loads(path.read_text())
  differences = list(differing(stored, to_json(fields), "config"))
  if differences:
    raise UserError(
      f"got a config that differs from the one in {path}: "
      f"{'; '.join(differences[:5])}; use another --workdir or restore these "
      "values"
    )


def to_json(value: Any) -> Any:
  """The value as it reads back from a JSON file (tuples become lists)."""
  return json.loads(json.dumps(value))


def differing(old: Any, new: Any, name: str) -> Iterator[str]:
  """Names each place where two JSON values differ: `a.b is 1, was 2`.

  Fields that may change are left out.
  """
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted((old.keys() | new.keys()) - set(_FREE_FIELDS)):
      yield from differing(old.get(key), new.get(key), f"{name}.{key}")
  elif old != new:
    yield f"{name} is {new!r:.80}, was {old!r:.80}"

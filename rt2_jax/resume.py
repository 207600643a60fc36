"""Starts a run: from its newest good checkpoint, from weights, or from a seed.

A checkpoint is compared with the config and the data before a run goes on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rt2_jax import optimizer, trees
from rt2_jax import workdir as claim
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.checkpoint_meta import CheckpointMeta
from rt2_jax.differences import differing, to_json
from rt2_jax.errors import UserError
from rt2_jax.optimizer import OptimizerConfig
from rt2_jax.saved_step import Damaged
from rt2_jax.train_config import TrainConfig, with_defaults
from rt2_jax.train_state import Trainer, TrainState
from rt2_jax.weights import lora_base
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint

_LOG = logging.getLogger(__name__)

# What a run that goes on may not change.
_SAME = ("model", "prompts", "action_tokenizers", "observation")
_SAME += ("observations",)


def restore_or_init(
  config: TrainConfig,
  trainer: Trainer,
  abstract: TrainState,
  checkpoints: Checkpoints,
  meta: CheckpointMeta,
) -> tuple[TrainState, Mapping[str, Any]]:
  """Restores the newest good state; or makes one, from weights if given.

  A damaged checkpoint is moved aside once an older one has been restored.

  Returns:
    The state, and the metrics that were not logged yet: see `Progress`.

  Raises:
    UserError: the checkpoint is of another model, tokenizer, action space or
      of other data; or all checkpoints are damaged.
  """
  steps, weights = checkpoints.steps(), config.pretrained
  if not steps:
    if not weights:
      return trainer.init_state(), {}
    params = read_weights(weights, trainer, abstract, meta)
    return trainer.state_from(params), {}
  damaged: dict[int, Damaged] = {}
  for step in reversed(steps):
    try:
      kept = described(checkpoints, step)
      check_same(kept, meta, _SAME)
      check_data(kept, meta, step)
      items = trainer.to_items(abstract)
      found = checkpoints.restore_state(*items, step)
    except Damaged as error:
      damaged[step] = error
      continue
    for bad, error in damaged.items():
      place = checkpoints.set_aside(bad)
      _LOG.error("%s; it is now %s, going on from %d", error, place, step)
    log_changes(kept, config, meta, step)
    count = jax.device_put(np.int32(step), abstract.step.sharding)
    items = count, found.params, found.opt_state
    base = None
    if trainer.model.adapted:
      base = read_base(weights, trainer, abstract, kept)
    return trainer.from_items(*items, base), found.window
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
  """Reads the parameters to start from, placed on the mesh.

  Raises:
    UserError: they are of another model, a run's of another tokenizer, or the
      adapters of a LoRA run.
  """
  if lora_base.is_run(weights):
    StoredCheckpoint.open(weights).check_merged()
    run = Checkpoints.open_run(weights)
    model = trainer.model.without_adapters()
    meta = dataclasses.replace(meta, model=model)
    check_same(described(run), meta, ("model",))
  return lora_base.read(weights, trainer.model, abstract.params, trainer.seed)


def read_base(
  weights: str | Mapping[str, str],
  trainer: Trainer,
  abstract: TrainState,
  kept: CheckpointMeta,
) -> Any:
  """Reads the base of a LoRA run again, and compares it.

  Raises:
    UserError: it is not the base that a checkpoint's adapters were trained on.
  """
  known = kept.base["checksums"]
  source = weights, trainer.model, abstract.params, trainer.seed
  params = lora_base.read(*source, known)
  flat, frozen = map(
    trees.flatten, (params, trainer.frozen_of(abstract.params))
  )
  lora_base.check(kept.base, trees.unflatten({n: flat[n] for n in frozen}))
  return params


def described(
  checkpoints: Checkpoints, step: int | None = None
) -> CheckpointMeta:
  """Restores what a checkpoint says of itself; default: the newest.

  It comes in today's format, whichever release saved it.
  """
  stored, _ = checkpoints.restore_meta(step)
  return CheckpointMeta.from_dict(stored)


def check_same(
  kept: CheckpointMeta, meta: CheckpointMeta, items: Sequence[str]
):
  """Compares what a checkpoint says of `items` and its tokenizer.

  Raises:
    UserError: one of them differs.
  """
  was, now = to_json(kept.to_dict()), to_json(meta.to_dict())
  for item in (*items, "tokenizer_sha256"):
    found = list(differing(was[item], now[item], item, claim.FREE_FIELDS))
    if found:
      raise UserError(
        "got a checkpoint of another model or action space, which this config "
        f"cannot go on from: {'; '.join(found[:3])}; use another "
        "--workdir or config.pretrained"
      )


def log_changes(
  kept: CheckpointMeta, config: TrainConfig, meta: CheckpointMeta, step: int
):
  """Logs which fields a run goes on with that its checkpoint did not have.

  Raises:
    UserError: the checkpoint is beyond `num_steps`.
  """
  if step > config.num_steps:
    raise UserError(
      f"got config.num_steps = {config.num_steps}, expected at least {step}: "
      "the newest checkpoint is that far; raise it, or use another --workdir"
    )
  old, new = (
    to_json(with_defaults(fields)) for fields in (kept.config, meta.config)
  )
  for change in differing(old, new, "config"):
    _LOG.info("goes on from step %d with another %s", step, change)
  before = OptimizerConfig(**old["optimizer"]), old["num_steps"]
  rates = [
    float(optimizer.learning_rate(*each)(step))
    for each in (before, (config.optimizer, config.num_steps))
  ]
  if rates[0] != rates[1]:
    _LOG.info("the learning rate there is %.3g, was %.3g", *reversed(rates))


def check_data(kept: CheckpointMeta, meta: CheckpointMeta, step: int):
  """Compares the data with those that a checkpoint was trained on.

  Raises:
    UserError: a source has another length or fingerprint.
  """
  if not kept.data:
    _LOG.warning(
      "checkpoint %d keeps no fingerprints of its data: nothing to compare",
      step,
    )
    return
  for name in kept.data.keys() & meta.data.keys():
    was, now = kept.data[name], meta.data[name]
    if was != now:
      raise UserError(
        f"got {now['length']} examples with fingerprint {now['fingerprint']} "
        f"from source {name!r}, expected the {was['length']} with fingerprint "
        f"{was['fingerprint']} that checkpoint {step} was trained on; restore "
        "the data, or start a new run: another --workdir, with "
        "config.pretrained naming this one"
      )

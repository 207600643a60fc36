"""Training data: from a config's sources to global batches on the mesh."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rt2_jax import sharding, storage
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.batch import Batch
from rt2_jax.input_pipeline import examples, loader, mixture
from rt2_jax.input_pipeline.step_index import StepSource
from rt2_jax.input_pipeline.web import WebSource
from rt2_jax.train_config import TrainConfig


def make_loader(
  config: TrainConfig,
  action_tokenizers: Mapping[str, ActionTokenizer],
  mesh: Mesh,
) -> loader.Loader:
  """Opens and checks every source, and builds this host's loader of them."""
  prompt = config.make_prompt()
  reading = config.loader.index_folder, config.loader.max_skipped
  specs, dropout = config.observation_specs(), config.observation.state_dropout
  robots = [
    examples.open_robot(
      source,
      source.split,
      action_tokenizers[name],
      config.make_prompt(name),
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
  sizes = tuple(len(e) for e in robots + webs)
  order = mixture.Mixture(
    sizes=sizes,
    weights=config.weights(sizes),
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
  """Yields (step, global batch on the mesh) for steps start..stop-1."""
  for step, batch in enumerate(batches.batches(start, stop), start):
    yield (
      step,
      sharding.to_devices(batch, batches.rows, batches.batch_size, mesh),
    )


def write_records(
  batches: loader.Loader, names: Sequence[str], step: int, folder: storage.Path
) -> str:
  """Writes which records the global batch of a step holds, row by row.

  Args:
    batches: any process's loader.
    names: of the sources.
    step: the batch's, counted from 0.
    folder: of the file; process 0 writes it.

  Returns:
    The path of the file.
  """
  path = folder / f"bad_step_{step + 1}.json"
  rows = np.arange(batches.batch_size)
  drawn = batches.mixture.draw(step, rows, batches.batch_size)
  records = [
    {
      "row": int(row),
      "source": names[source],
      "example": int(example),
      "epoch": int(epoch),
      "record": batches.examples[source].location(int(example)),
    }
    for row, source, example, epoch in zip(rows, *drawn, strict=True)
  ]
  if jax.process_index() == 0:
    storage.write(path, json.dumps(records, indent=2))
  return str(path)


def fingerprints(
  config: TrainConfig,
  batches: loader.Loader,
  held_out: Mapping[str, StepSource | WebSource],
) -> dict[str, dict[str, Any]]:
  """Describes every source by its length and fingerprint.

  Args:
    config: of the run.
    batches: its loader.
    held_out: the sources that are evaluated, called "NAME, held out".
  """
  opened = dict(
    zip(config.source_names, (e.source for e in batches.examples), strict=True)
  )
  opened |= {f"{name}, held out": s for name, s in held_out.items()}
  return {
    name: {"length": len(source), "fingerprint": source.fingerprint}
    for name, source in opened.items()
  }

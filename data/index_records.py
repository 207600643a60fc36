"""Indexes a job's data ahead of it, so that the job starts at once.

  python -m data.index_records --config=configs/x.py --index_folder=DIR

indexes the training split of every source of a config, robot and web, and

  python -m data.index_records --index_folder=DIR \\
    --dataset=bridge_dataset --path=…/bridge_dataset/1.0.0 --split=train

one split of one dataset; `--dataset=web` stands for image-text records. Shards
are indexed in parallel, and an interrupted program goes on with what is
missing. `--verify` first compares every record with its checksum, which reads
all data once. Give the job the same folder: `--config.loader.index_folder=DIR`.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm
from absl import app, flags
from ml_collections import config_flags

from rt2_jax.input_pipeline import datasets, records, rlds, web
from rt2_jax.input_pipeline.storage import open_storage

Config = datasets.SourceConfig | web.WebConfig
WEB = "web"  # in place of a robot dataset's name


def config_sources(fields: Mapping[str, Any]) -> dict[str, Config]:
  """The sources of a config file, by name."""
  robots = {
    name: datasets.SourceConfig(**source)
    for name, source in fields["sources"].items()
  }
  webs = {
    name: web.WebConfig(**source) for name, source in fields["web"].items()
  }
  return robots | webs


def named_source(dataset: str, path: str, split: str) -> dict[str, Config]:
  """One split of one dataset."""
  if dataset == WEB:
    return {path: web.WebConfig(path, split)}
  datasets.robot_dataset(dataset)
  return {path: datasets.SourceConfig(dataset, path, split)}


def open_source(
  config: Config, folder: str, num_workers: int | None
) -> rlds.StepSource | web.WebSource:
  """Indexes the training split of a source."""
  if isinstance(config, web.WebConfig):
    return web.open_source(config, folder, num_workers)
  return datasets.open_source(
    config, config.split, index_folder=folder, num_workers=num_workers
  )


def verify(config: Config) -> None:
  """Compares every record of a source with its checksum.

  Raises:
    ValueError: a record's bytes are not those that were written.
  """
  storage = open_storage(config.path)
  if isinstance(config, web.WebConfig):
    files = web.find_shards(storage, config)
  else:
    files = records.find_shards(storage, config.path, config.split)
  sizes = {path: storage.size(path) for path in files}
  with tqdm.tqdm(
    desc="verify", total=sum(sizes.values()), unit="B", unit_scale=True
  ) as progress:
    for path in files:
      records.check_data(storage, path)
      progress.update(sizes[path])


def index_all(
  sources: Mapping[str, Config],
  folder: str,
  num_workers: int | None = None,
  check: bool = False,
) -> None:
  """Indexes every source, and prints what each one holds.

  Args:
    sources: by name.
    folder: gets one small file per shard.
    num_workers: processes; None: one per CPU.
    check: verify the data first.
  """
  for name, config in sources.items():
    if check:
      verify(config)
    start = time.monotonic()
    index = open_source(config, folder, num_workers).index
    seconds = time.monotonic() - start
    what = "steps" if isinstance(index, rlds.StepIndex) else "examples"
    print(
      f"{name}: {len(index):,} {what} in {len(index.files)} shards, "
      f"{index.nbytes:,} bytes of index, {seconds:.1f} s"
    )


def asked_for(args: flags.FlagValues) -> tuple[dict[str, Config], str]:
  """Sources and index folder, from a config or from single flags.

  Raises:
    ValueError: neither or both are given, or no folder.
  """
  has_config, named = args.config is not None, (args.dataset, args.path)
  if any(named) == has_config or any(named) != all(named):
    raise ValueError(
      f"got --config {'set' if has_config else 'not set'}, --dataset="
      f"{args.dataset} and --path={args.path}; expected either --config, or "
      "--dataset and --path"
    )
  folder = args.index_folder
  if not has_config:
    sources = named_source(args.dataset, args.path, args.split)
  else:
    fields = args.config.to_dict()
    sources = config_sources(fields)
    folder = folder or fields["loader"]["index_folder"]
  if not folder:
    raise ValueError("got no folder for the indexes; pass --index_folder=DIR")
  return sources, folder


def main(_):
  args = flags.FLAGS
  try:
    sources, folder = asked_for(args)
    index_all(sources, folder, args.num_workers, args.verify)
  except ValueError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  # Flags are defined only when this file is the program: absl's names are
  # global, and tests import several programs into one process.
  config_flags.DEFINE_config_file("config", None, "A file in configs/")
  flags.DEFINE_string("dataset", None, "Without a config: a dataset's name")
  flags.DEFINE_string("path", None, "Without a config: the dataset's folder")
  flags.DEFINE_string("split", "train", "Without a config: its split")
  flags.DEFINE_string("index_folder", None, "Default: the config's own")
  flags.DEFINE_integer("num_workers", None, "Default: one per CPU", 1)
  flags.DEFINE_boolean("verify", False, "Compare all data with checksums")
  app.run(main)

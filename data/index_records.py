"""Indexes a job's data ahead of it, so that the job starts at once.

  python -m data.index_records --config=configs/x.py --index_folder=DIR

indexes the training split of every source of a config, robot and web, and

  python -m data.index_records --index_folder=DIR \\
    --dataset=bridge_dataset --path=…/bridge_dataset/1.0.0 --split=train

one split of one dataset; `--dataset=web` stands for image-text records and
needs `--tokenizer`. Shards are indexed in parallel, every record is compared
with its checksum, and an interrupted program goes on with what is missing. Give
the job the same folder: `--config.loader.index_folder=DIR`.

Damaged records are an error, unless the config's `loader.max_skipped`, or
`--max_skipped`, allows as many examples (steps of a robot) as they hold: they
are left out, and listed by file and offset.
"""

import time
from collections.abc import Mapping
from typing import Any

from absl import app, flags

from launch import experiment_flag, program
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import web
from rt2_jax.input_pipeline.dataset_names import robot_dataset
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.input_pipeline.step_index import StepIndex
from rt2_jax.observation import ObservationConfig
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.train_config import with_defaults

Config = SourceConfig | web.WebConfig
PLAIN = ObservationConfig()  # one camera, no state
WEB = "web"  # in place of a robot dataset's name


def config_sources(fields: Mapping[str, Any]) -> dict[str, Config]:
  """Lists the sources of a config file, by name."""
  robots = {
    name: SourceConfig(**source) for name, source in fields["sources"].items()
  }
  webs = {
    name: web.WebConfig(**source) for name, source in fields["web"].items()
  }
  return robots | webs


def named_source(dataset: str, path: str, split: str) -> dict[str, Config]:
  """Describes one split of one dataset as a source."""
  if dataset == WEB:
    return {path: web.WebConfig(path, split)}
  robot_dataset(dataset, path)
  return {path: SourceConfig(dataset, path, split)}


def index_all(
  sources: Mapping[str, Config],
  tokenizer: Tokenizer | None,
  folder: str,
  num_workers: int | None = None,
  max_skipped: int = 0,
  observation: ObservationConfig = PLAIN,
) -> None:
  """Indexes every source's training split, and prints what each one holds.

  Args:
    sources: by name.
    tokenizer: counts the tokens of web data; robot data needs none.
    folder: gets one small file per shard.
    num_workers: processes; None: one per CPU.
    max_skipped: examples of a source that may be lost to damaged records.
    observation: the cameras and the state that a job will read.
  """
  kept = (folder, num_workers, max_skipped)
  for name, config in sources.items():
    start = time.monotonic()
    if isinstance(config, web.WebConfig):
      index = web.open_source(config, tokenizer, *kept).index
    else:
      spec = config.observation_spec(observation.spec, observation.state)
      index = open_source(config, config.split, spec, *kept).index
    seconds = time.monotonic() - start
    what = "steps" if isinstance(index, StepIndex) else "examples"
    print(
      f"{name}: {len(index):,} {what} in {len(index.files)} shards, "
      f"{index.nbytes:,} bytes of index, {seconds:.1f} s"
    )
    for damage in index.damaged:
      print(f"  left out: {damage.problem}")


def asked_for(args: flags.FlagValues) -> dict[str, Any]:
  """Reads the arguments of `index_all` from a config or from single flags.

  Raises:
    UserError: neither or both are given, no folder, or no tokenizer for web
      data.
  """
  has_config, named = args.config is not None, (args.dataset, args.path)
  if any(named) == has_config or any(named) != all(named):
    raise UserError(
      f"got --config {'set' if has_config else 'not set'}, --dataset="
      f"{args.dataset} and --path={args.path}; expected either --config, or "
      "--dataset and --path"
    )
  folder, tokenizer = args.index_folder, args.tokenizer
  max_skipped = args.max_skipped
  observation = ObservationConfig()
  if not has_config:
    sources = named_source(args.dataset, args.path, args.split)
  else:
    fields = with_defaults(args.config.to_dict())
    sources = config_sources(fields)
    observation = ObservationConfig(**fields["observation"])
    folder = folder or fields["loader"]["index_folder"]
    tokenizer = tokenizer or fields["tokenizer_file"]
    if max_skipped is None:  # 0 was asked for where it is given
      max_skipped = fields["loader"]["max_skipped"]
  if not folder:
    raise UserError("got no folder for the indexes; pass --index_folder=DIR")
  if not tokenizer and args.dataset == WEB:
    raise UserError(
      "got image-text records without a tokenizer, whose tokens are counted; "
      "pass --tokenizer=FILE, the job's own"
    )
  return {
    "sources": sources,
    "tokenizer": Tokenizer.from_file(tokenizer) if tokenizer else None,
    "folder": folder,
    "num_workers": args.num_workers,
    "max_skipped": max_skipped or 0,
    "observation": observation,
  }


@program.main
def main():
  args = flags.FLAGS
  index_all(**asked_for(args))


if __name__ == "__main__":
  experiment_flag.define()
  flags.DEFINE_string("dataset", None, "Without a config: a dataset's name")
  flags.DEFINE_string("path", None, "Without a config: the dataset's folder")
  flags.DEFINE_string("split", "train", "Without a config: its split")
  flags.DEFINE_string("index_folder", None, "Default: the config's own")
  flags.DEFINE_string("tokenizer", None, "For web data; default: the config's")
  flags.DEFINE_integer("max_skipped", None, "Default: the config's own", 0)
  flags.DEFINE_integer("num_workers", None, "Default: one per CPU", 1)
  app.run(main)

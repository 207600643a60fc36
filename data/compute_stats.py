"""Measures the actions of a robot dataset; the numbers go into configs.

  python -m data.compute_stats --dataset=bridge_dataset \\
    --path=…/bridge_dataset/1.0.0 --split=train --output=data/stats/bridge.json

prints and writes, per dimension of the canonical action, the 1st and 99th
percentile, least and largest value, mean and standard deviation, in physical
units, and the `bounds` that they suggest for a source of a config. The index
holds every action, so no image is decoded; with `--index_folder` it is kept.
Damaged steps are an error, unless `--max_skipped` allows as many: then they are
left out, and listed.

A dimension whose percentiles are closer than --min_span is degenerate: bins
over its own span would blow noise up to full scale. It is reported, and its
suggested bounds are the minimum span around the centre. Grippers and discrete
dimensions get no bounds.
"""

import hashlib
import json
import os
import re
from typing import Any

import numpy as np
from absl import app, flags

from launch import program
from rt2_jax.actions import ActionSpace
from rt2_jax.input_pipeline.bounds_fit import has_bounds
from rt2_jax.input_pipeline.sources import (
  SourceConfig,
  open_source,
)
from rt2_jax.input_pipeline.step_index import StepSource
from rt2_jax.storage import locate, output_folder, write

MIN_SPAN = 1e-3  # of bounds, in the unit of a dimension
COLUMNS = ("q01", "q99", "min", "max", "mean", "std")


def compute(
  config: SourceConfig,
  min_span: float = MIN_SPAN,
  index_folder: str | None = None,
  max_skipped: int = 0,
) -> dict[str, Any]:
  """Measures the actions of a source's training split, as JSON values.

  Args:
    config: which data, which filters and stride.
    min_span: least distance of suggested bounds, in the dimensions' units.
    index_folder: where the index is kept; None keeps none.
    max_skipped: steps that may be left out because they are damaged.
  """
  source = open_source(
    config, config.split, index_folder=index_folder, max_skipped=max_skipped
  )
  robot, index = config.robot, source.index
  dimensions = measure(index.action, robot.space, min_span)
  return {
    "dataset": config.dataset,
    "rate_hz": config.control_hz,
    "stride": config.stride,
    "split": config.split,
    "filters": dict(config.filters),
    "fingerprint": fingerprint(source),
    "num_episodes": len(np.unique(index.episode)),
    "num_steps": len(index),
    "left_out": [loss.problem for loss in index.damaged],
    "min_span": min_span,
    "dimensions": dimensions,
    "bounds": {
      name: suggested_bounds(row["q01"], row["q99"], min_span)
      for name, row in dimensions.items()
      if "degenerate" in row
    },
  }


def measure(
  action: np.ndarray, space: ActionSpace, min_span: float
) -> dict[str, dict[str, Any]]:
  """Measures each dimension of float32[N, D] actions, by its name."""
  action = action.astype(np.float64)
  q01, q99 = np.quantile(action, [0.01, 0.99], axis=0)
  columns = (q01, q99, action.min(0), action.max(0), action.mean(0))
  table = np.stack([*columns, action.std(0)], -1)
  rows = {}
  for d, values in zip(space.dimensions, table, strict=True):
    row = {name: rounded(v) for name, v in zip(COLUMNS, values, strict=True)}
    rows[d.name] = {"unit": d.unit, **row}
    if has_bounds(d):
      span = row["q99"] - row["q01"]
      least = _least_span(row["q01"], row["q99"], min_span)
      rows[d.name]["degenerate"] = span < least
  return rows


def suggested_bounds(
  q01: float, q99: float, min_span: float = MIN_SPAN
) -> list[float]:
  """Suggests [q01, q99] as bounds, or the least span around their centre."""
  least, centre = _least_span(q01, q99, min_span), (q01 + q99) / 2
  if q99 - q01 < least:
    q01, q99 = centre - least / 2, centre + least / 2
  return [rounded(q01), rounded(q99)]


def _least_span(q01: float, q99: float, min_span: float) -> float:
  # Bounds differ also after rounding, where a large number hardly varies.
  return max(min_span, 1e-4 * abs(q01 + q99) / 2)


def fingerprint(source: StepSource) -> str:
  """Hashes the names and sizes of the shards."""
  files = source.index.files
  sizes = source.storage.sizes(files)
  shards = [
    [os.path.basename(path), size]
    for path, size in zip(files, sizes, strict=True)
  ]
  return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:12]


def rounded(value: float) -> float:
  """Rounds to six significant digits: more than any robot's actions have."""
  return float(f"{value:.6g}")


def table(stats: dict[str, Any]) -> str:
  """Formats the statistics as a table."""
  header = "".join(f"{name:>11}" for name in COLUMNS)
  rate = f" at {stats['rate_hz']:g} Hz" if stats["rate_hz"] else ""
  width = max(map(len, stats["dimensions"]))
  lines = [
    f"{stats['dataset']}, split {stats['split']!r}: {stats['num_steps']:,} "
    f"steps{rate} in {stats['num_episodes']:,} episodes",
    f"{'':<{width + 6}}{header}",
  ]
  for name, row in stats["dimensions"].items():
    numbers = "".join(f"{row[column]:>11.4g}" for column in COLUMNS)
    note = "  degenerate" if row.get("degenerate") else ""
    lines.append(f"{name:<{width}}{row['unit']:>6}{numbers}{note}")
  lines += [f"left out: {problem}" for problem in stats["left_out"]]
  return "\n".join(lines)


@program.main
def main():
  args = flags.FLAGS
  filters = {"drop_noops": True} if args.drop_noops else {}
  # An import path or a description's path is no name of a file.
  name = re.sub(r"[^\w.-]+", "_", f"{args.dataset}-{args.split}")
  output = locate(args.output or f"data/stats/{name}.json", "--output")
  config = SourceConfig(
    args.dataset, args.path, args.split, stride=args.stride, filters=filters
  )
  stats = compute(config, args.min_span, args.index_folder, args.max_skipped)
  output_folder(output.parent, "--output")
  write(output, json.dumps(stats, indent=2) + "\n")
  print(table(stats))
  print(f"figures and suggested bounds: {output}")


if __name__ == "__main__":
  flags.DEFINE_string("dataset", None, "A robot dataset", required=True)
  flags.DEFINE_string("path", None, "Its version folder", required=True)
  flags.DEFINE_string("split", "train", "Which split")
  flags.DEFINE_integer("stride", 1, "Recorded steps that make one step", 1)
  flags.DEFINE_boolean("drop_noops", False, "Leave out steps that stand still")
  flags.DEFINE_float(
    "min_span", MIN_SPAN, "Of suggested bounds, their unit", 0.0
  )
  flags.DEFINE_string("index_folder", None, "Where the index is kept")
  flags.DEFINE_integer("max_skipped", 0, "Damaged steps to leave out", 0)
  flags.DEFINE_string("output", None, "Default: data/stats/DATASET-SPLIT.json")
  app.run(main)

"""Checks a robot's recordings before the GPU hours: one page, one exit code.

  python -m data.check_episodes --path=OUT/my_arm/1.0.0 --output=check.html

reads every number, text and picture's checksum of a split, and writes a page:
what is wrong and where, what to change in robot.json, how the actions fill the
256 bins, an episode over time, and a picture of each camera. It exits with 1
where something is an error: what training would refuse, or learn wrongly from.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
from absl import app, flags

from data import action_checks, episode_plots, record_checks
from data.compute_stats import rounded
from data.findings import Finding
from data.recorded_episodes import RecordedSplit, read_split
from launch import program
from rt2_jax import images, storage
from rt2_jax.actions import NUM_BINS, Dimension
from rt2_jax.byte_ranges import open_storage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import bounds_fit
from rt2_jax.input_pipeline.description import FILE
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.rollouts import page
from rt2_jax.storage import locate, output_folder, write

_TEMPLATE = Path(__file__).with_name("episodes.html.jinja")
CHECKS = (
  record_checks.check_counts,
  record_checks.check_texts,
  record_checks.check_words,
  action_checks.check_bounds,
  action_checks.check_dimensions,
  action_checks.check_grippers,
  action_checks.check_units,
  action_checks.check_idle,
  action_checks.check_jumps,
  record_checks.check_times,
  record_checks.check_duplicates,
  action_checks.check_following,
)


def check(split: RecordedSplit) -> list[Finding]:
  """Returns what all checks find, errors first."""
  found = [finding for each in CHECKS for finding in each(split)]
  found += list(check_pictures(split))
  return sorted(found, key=lambda finding: not finding.is_error)


def check_pictures(split: RecordedSplit) -> Iterator[Finding]:
  """Decodes a picture of each camera in every episode."""
  storage = open_storage(split.config.folder)
  bad: dict[str, list[str]] = {}
  for episode in split.episodes:
    pictures = storage.read(episode.shown)
    for camera, data in zip(split.robot.cameras, pictures, strict=True):
      try:
        pixels = images.decode(data)
      except UserError as problem:
        bad.setdefault(f"pictures of {camera} do not decode", []).append(
          f"{episode.name}: {problem}"
        )
        continue
      if pixels.std() < 1.0:
        bad.setdefault(f"pictures of {camera} show nothing", []).append(
          f"{episode.name}: one colour, {pixels.mean((0, 1)).round().tolist()}"
        )
  for title, places in bad.items():
    yield Finding(
      title,
      f"In {len(places):,} of {len(split.episodes):,} episodes, by the picture "
      "in the middle of each.",
      is_error=True,
      places=tuple(places[:5]),
    )


def write_page(
  split: RecordedSplit, findings: list[Finding], path: storage.Path
) -> None:
  """Writes the page about a split."""
  lengths = [len(e.action) for e in split.episodes]
  text = page.render(
    _TEMPLATE,
    config=split.config,
    robot=split.robot,
    findings=findings,
    num_errors=sum(finding.is_error for finding in findings),
    lengths=lengths,
    median=int(np.median(lengths)) if lengths else 0,
    texts=_texts(split),
    rows=list(_rows(split)) if lengths else [],
    pictures=list(_pictures(split)),
    plots=[markupsafe.Markup(plot) for plot in episode_plots.draw(split)],
    changes=_changes(split),
  )
  write(path, text)


def _texts(split: RecordedSplit) -> list[tuple[str, int]]:
  """Counts the episodes of each instruction, the most frequent first."""
  count: dict[str, int] = {}
  for episode in split.episodes:
    for text in dict.fromkeys(episode.texts):
      count[text] = count.get(text, 0) + 1
  return sorted(count.items(), key=lambda item: -item[1])


def _rows(split: RecordedSplit) -> Iterator[dict[str, Any]]:
  """Yields a row of figures for each dimension of the action."""
  action, space = split.action, split.config.space
  fits = {fit.name: fit for fit in bounds_fit.measure(space, action)}
  for i, d in enumerate(space.dimensions):
    values = action[:, i].astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99])
    fit = fits.get(d.name)
    yield {
      "name": d.name,
      "unit": d.unit,
      "bounds": _bounds(d),
      "numbers": [values.min(), q01, q99, values.max()],
      "used": len(np.unique(d.to_bins(values))),
      "of": d.size,
      "clipped": f"{fit.clipped:.1%}" if fit else "",
      "fits": fit is None or fit.fits,
    }


def _bounds(d: Dimension) -> str:
  if d.values:
    return ", ".join(f"{value:g}" for value in d.values)
  return f"{d.low:.4g} to {d.high:.4g}"


def _pictures(split: RecordedSplit) -> Iterator[dict[str, str]]:
  """Yields a picture of each camera, from the middle of the data set."""
  if not split.episodes:
    return
  episode = split.episodes[len(split.episodes) // 2]
  storage = open_storage(split.config.folder)
  for camera, data in zip(
    split.robot.cameras, storage.read(episode.shown), strict=True
  ):
    try:
      height, width = images.decode(data).shape[:2]
    except UserError:
      continue  # among the findings
    kind = "jpeg" if images.is_jpeg(data) else "png"
    encoded = base64.b64encode(data).decode()
    yield {
      "title": f"{camera}: {height} x {width}",
      "source": f"data:image/{kind};base64,{encoded}",
    }


def _changes(split: RecordedSplit) -> str:
  """Bounds that fit, as a config or a robot.json writes them; "" if all do."""
  if not split.episodes:
    return ""
  fits = bounds_fit.measure(split.config.space, split.action)
  rows = [
    json.dumps({"name": f.name, "low": rounded(low), "high": rounded(high)})
    for f in fits
    for low, high in [f.span]
    if not f.fits
  ]
  return "\n".join(rows)


def summary(split: RecordedSplit, findings: list[Finding]) -> str:
  """Writes the findings for a terminal."""
  steps = sum(len(e.action) for e in split.episodes)
  lines = [
    f"{len(split.episodes):,} episodes, {steps:,} steps of {NUM_BINS} bins in "
    f"{len(split.robot.space)} dimensions"
  ]
  for finding in findings:
    kind = "ERROR" if finding.is_error else "warning"
    lines.append(f"{kind}: {finding.title}: {finding.text}")
    lines += [f"    {place}" for place in finding.places]
  return "\n".join(lines)


@program.main
def main():
  args = flags.FLAGS
  output = locate(args.output, "--output")
  split = read_split(SourceConfig(args.dataset, args.path), args.split)
  findings = check(split)
  output_folder(output.parent, "--output")
  write_page(split, findings, output)
  print(summary(split, findings))
  print(f"page: {output}")
  sys.exit(int(any(finding.is_error for finding in findings)))


if __name__ == "__main__":
  flags.DEFINE_string(
    "path", None, "Its version folder, or that above", required=True
  )
  flags.DEFINE_string("dataset", FILE, "What the records mean")
  flags.DEFINE_string("split", "train", "Which split")
  flags.DEFINE_string("output", "check.html", "The page")
  app.run(main)

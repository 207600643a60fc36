"""Recordings as drawings for a page, in SVG."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.recorded_episodes import Recorded, RecordedSplit
from rt2_jax.actions import Dimension
from rt2_jax.rollouts.plots import to_svg

_ACTION, _STATE, _CLIPPED = "#0072b2", "#d55e00", "#cc0000"
_ROW = 0.85  # inches


def draw(split: RecordedSplit) -> Iterator[str]:
  """Draws lengths; then each dimension's bins, and an episode over time."""
  if not split.episodes:
    return
  if len({len(e.action) for e in split.episodes}) > 1:
    yield to_svg(_lengths(split))
  yield to_svg(_dimensions(split))


def _lengths(split: RecordedSplit) -> Figure:
  lengths = [len(e.action) for e in split.episodes]
  figure = Figure((9.0, 2.0))
  axes = figure.subplots()
  axes.hist(lengths, bins=min(40, len(set(lengths)) + 1), color=_ACTION)
  axes.set(xlabel="steps of an episode", ylabel="episodes")
  axes.spines[["top", "right"]].set_visible(False)
  return figure


def _dimensions(split: RecordedSplit) -> Figure:
  """Draws a row for each dimension: its bins, and the middle episode."""
  space, action = split.config.space, split.action.astype(np.float64)
  rows = len(space)
  figure = Figure((9.0, 0.6 + _ROW * rows))
  panels = figure.subplots(rows, 2, squeeze=False, width_ratios=(1, 2))
  episode = split.episodes[len(split.episodes) // 2]
  for i, d in enumerate(space.dimensions):
    left, right = panels[i]
    _draw_bins(left, action[:, i], d)
    _draw_time(right, split, episode, i)
    left.set_ylabel(d.name, rotation=0, ha="right", va="center")
    for panel in (left, right):
      panel.spines[["top", "right"]].set_visible(False)
      panel.tick_params(labelsize=7)
    if i < rows - 1:
      right.set_xticklabels([])
  panels[0, 0].set_title("steps by bin (red: at the ends)", fontsize="medium")
  panels[0, 1].set_title(
    "one episode: action, and state of that name (orange)", fontsize="medium"
  )
  panels[-1, 1].set_xlabel("step")
  return figure


def _draw_bins(axes: Axes, values: np.ndarray, d: Dimension):
  counts = np.bincount(d.to_bins(values), minlength=d.size)
  axes.stairs(counts, fill=True, color=_ACTION)
  if not d.values:
    beyond = np.zeros_like(counts)
    beyond[[0, -1]] = (values < d.low).sum(), (values > d.high).sum()
    axes.stairs(beyond, fill=True, color=_CLIPPED)
  axes.set_yticks([])
  axes.set_xlim(0, d.size)


def _draw_time(axes: Axes, split: RecordedSplit, episode: Recorded, i: int):
  axes.plot(episode.action[:, i], color=_ACTION, linewidth=1)
  name = split.robot.space.names[i]
  if split.robot.state and name in split.robot.state.space.names:
    column = split.robot.state.space.names.index(name)
    axes.plot(episode.state[:, column], color=_STATE, linewidth=1)

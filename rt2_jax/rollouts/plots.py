"""Draws success and outcomes for the report, as SVG."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rt2_jax.rollouts.trial import BROKEN_OFF

# What matplotlib would write about itself: dates, links.
_UNSAID = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# Told apart by most colour-blind readers too (Okabe and Ito).
_POLICIES = (
  *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
  *("#999999", "#000000"),
)
_REASONS = ("#009e73", "#d55e00", "#e69f00", "#f0e442", "#bbbbbb")
_MORE_REASONS = ("#0072b2", "#cc79a7", "#56b4e9", "#999999")
_BROKEN_OFF = "#000000"


def colours(reasons: Sequence[str]) -> dict[str, str]:
  """Returns a colour for each reason why trials end; success is green."""
  palette = itertools.cycle(_REASONS + _MORE_REASONS)
  chosen = dict(zip(reasons, palette, strict=False))
  return chosen | {BROKEN_OFF: _BROKEN_OFF}


def draw_success(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """Draws bars with intervals, side by side for the policies.

  Args:
    rows: for each row's title, by policy: numbers with `rate` and `interval`.

  Returns:
    An <svg> element.
  """
  policies = list(next(iter(rows.values())))
  figure = Figure((9.0, 3.4))
  axes = figure.subplots()
  width = 0.8 / len(policies)
  for p, policy in enumerate(policies):
    cells = [row[policy] for row in rows.values()]
    rates = [100 * cell["rate"] for cell in cells]
    spans = [
      [100 * abs(cell["rate"] - cell["interval"][i]) for cell in cells]
      for i in (0, 1)
    ]
    axes.bar(
      [i + (p - (len(policies) - 1) / 2) * width for i in range(len(rows))],
      rates,
      width,
      yerr=spans,
      color=_POLICIES[p % len(_POLICIES)],
      error_kw={"elinewidth": 1, "ecolor": "#333333"},
      label=policy,
    )
  axes.set_xticks(
    range(len(rows)), [title.replace(" ", "\n") for title in rows]
  )
  axes.set_ylim(0, 105)
  axes.set_ylabel("success, %")
  axes.spines[["top", "right"]].set_visible(False)
  figure.legend(loc="outside upper center", ncols=min(len(policies), 4))
  return to_svg(figure)


def draw_outcomes(
  columns: Mapping[str, Sequence[tuple[str, Mapping[str, int]]]],
  reasons: Sequence[str],
) -> str:
  """Draws how trials ended: for each policy a panel with a bar for each suite.

  Args:
    columns: by policy, (suite's title, number of trials for each reason).
    reasons: in the order of the drawing.

  Returns:
    An <svg> element.
  """
  titles = [title for title, _ in next(iter(columns.values()))]
  figure = Figure((2.2 + 1.7 * len(columns), 1.2 + 0.24 * len(titles)))
  panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
  for panel, (policy, suites) in zip(panels, columns.items(), strict=True):
    start = [0.0] * len(titles)
    for reason in reasons:
      parts = [100 * c[reason] / max(sum(c.values()), 1) for _, c in suites]
      panel.barh(
        range(len(titles)),
        parts,
        left=start,
        color=colours(reasons)[reason],
        label=reason,
      )
      start = [s + part for s, part in zip(start, parts, strict=True)]
    panel.set_title(policy, fontsize="medium")
    panel.set_xlim(0, 100)
    panel.spines[["top", "right"]].set_visible(False)
  panels[0].set_yticks(range(len(titles)), titles)
  panels[0].invert_yaxis()
  figure.supxlabel("% of trials", fontsize="medium")
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside upper center", ncols=3)
  return to_svg(figure)


def to_svg(figure: Figure) -> str:
  """Returns the <svg> element alone; the same drawing gives the same text."""
  figure.set_layout_engine("constrained")
  text = io.StringIO()
  style = {"svg.fonttype": "none", "svg.hashsalt": "rollouts", "font.size": 9}
  with matplotlib.rc_context(style):
    figure.savefig(text, format="svg", metadata=_UNSAID)
  drawing = text.getvalue()
  return drawing[drawing.index("<svg") :]

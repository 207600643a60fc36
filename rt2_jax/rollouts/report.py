"""Writes one HTML report about all policies that met the same trials.

A folder holds what `launch/rollout.py` wrote: `{policy}.json`, and films in
`films/{policy}/`. The report needs no network and no other file, except for its
links to the films. Tables are laid out as the paper's tables 4 to 6.
"""

from __future__ import annotations

import base64
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import markupsafe

from rt2_jax import storage
from rt2_jax.rollouts import films, page, plots, results

PAGE = "report.html"
FIGURE = "success.svg"
_TEMPLATE = pathlib.Path(__file__).with_name("report.html.jinja")


def write(folder: storage.Path) -> storage.Path:
  """Writes the report about all results of a folder; returns its path.

  The drawing of success lies beside it too, for other pages.

  Raises:
    UserError: no results, results of other trials, or a film is missing.
  """
  found = results.read(folder)
  first = next(iter(found.values()))
  reasons = _reasons(found)
  filmed = list(_filmed(found))
  success = plots.draw_success(results.by_topic(found))
  storage.write(folder / FIGURE, success)
  text = page.render(
    _TEMPLATE,
    benchmark=first["benchmark"],
    first=first,
    results=found,
    colours=plots.colours(reasons),
    success=list(_success(found)),
    success_drawing=markupsafe.Markup(success),
    outcome_drawing=markupsafe.Markup(_draw_outcomes(found, reasons)),
    outcomes={r: _counts(found, r) for r in reasons},
    capped=[
      sum(suite["capped"] for suite in result["suites"].values())
      for result in found.values()
    ],
    plans=_plans(found),
    web=_web(found),
    filmed=filmed,
    first_films=_first_films(filmed),
    strip=lambda film: _encoded(folder / film),
    broken=list(_broken(found)),
  )
  path = folder / PAGE
  storage.write(path, text)
  return path


def _reasons(found: Mapping[str, dict]) -> list[str]:
  """Returns the benchmark's reasons, and others that trials ended for."""
  reasons = dict.fromkeys(next(iter(found.values()))["benchmark"]["reasons"])
  for result in found.values():
    for suite in result["suites"].values():
      reasons |= dict.fromkeys(suite["outcomes"])
  return list(reasons)


def _counts(found: Mapping[str, dict], reason: str) -> list[int]:
  """Counts each policy's trials that ended for a reason, over all suites."""
  return [
    sum(suite["outcomes"].get(reason, 0) for suite in result["suites"].values())
    for result in found.values()
  ]


def _draw_outcomes(found: Mapping[str, dict], reasons: list[str]) -> str:
  none = dict.fromkeys(reasons, 0)
  columns = {
    policy: [
      (suite["title"], none | suite["outcomes"])
      for suite in result["suites"].values()
    ]
    for policy, result in found.items()
  }
  return plots.draw_outcomes(columns, reasons)


def _success(found: Mapping[str, dict]) -> Iterator[dict[str, Any]]:
  """Yields the sections of the table of success: groups, means and tags."""
  first = next(iter(found.values()))
  pooled = {}
  for group, names in results.groups(first).items():
    rows = [
      _row(first["suites"][name]["title"], _suite(found, name), found)
      for name in names
    ]
    pooled[group] = results.pool_each(found, names)
    if len(names) > 1:
      rows.append(_row(f"{group}, average", pooled[group], found, True))
    is_alone = [row["title"] for row in rows] == [group]
    yield {"title": "" if is_alone else group, "rows": rows}
  rows = [
    # As in table 5: the mean of the means, which has no simple interval.
    _row(title, _mean([pooled[g] for g in groups]), found, True)
    for title, groups in first["benchmark"]["means"].items()
    if set(groups) <= pooled.keys()
  ]
  yield {"title": "", "rows": rows}
  by_key: dict[str, list[dict[str, Any]]] = {}
  for (key, value), cells in results.by_tag(found).items():
    by_key.setdefault(key, []).append(_row(value, cells, found))
  for key, rows in by_key.items():
    yield {"title": f"all suites, by {key}", "rows": rows}


def _suite(found: Mapping[str, dict], name: str) -> dict[str, dict]:
  return {policy: result["suites"][name] for policy, result in found.items()}


def _mean(groups: list[dict[str, dict]]) -> dict[str, dict]:
  """Averages the rates of several groups, by policy."""
  return {
    policy: {"rate": sum(g[policy]["rate"] for g in groups) / len(groups)}
    for policy in groups[0]
  }


def _row(
  title: str,
  cells: Mapping[str, Mapping[str, Any]],
  found: Mapping[str, dict],
  is_mean: bool = False,
) -> dict[str, Any]:
  """Writes a row of rates; the best of the policies but baselines is bold."""
  tried = {p: c for p, c in cells.items() if not results.is_baseline(found[p])}
  best = max((cell["rate"] for cell in tried.values()), default=None)
  texts = []
  for policy, cell in cells.items():
    text = {
      "rate": f"{100 * cell['rate']:.0f}",
      "is_best": policy in tried and cell["rate"] == best,
      "interval": "",
      "hint": "",
    }
    if "interval" in cell:
      low, high = (100 * edge for edge in cell["interval"])
      text["interval"] = f"{low:.0f} to {high:.0f}"
      text["hint"] = f"{cell['successes']} of {cell['n']}"
    texts.append(text)
  return {"title": title, "cells": texts, "is_mean": is_mean}


def _plans(found: Mapping[str, dict]) -> dict[str, Any]:
  """Counts which plans were right, and what became of them."""
  planning = [
    policy
    for policy, result in found.items()
    if any(
      trial["plan_is_right"] is not None
      for suite in result["suites"].values()
      for trial in suite["trials"]
    )
  ]
  first = next(iter(found.values()))
  rows = [
    (
      suite["title"],
      [_judged(found[p]["suites"][name]["trials"]) for p in planning],
    )
    for name, suite in first["suites"].items()
  ]
  return {"policies": planning, "rows": rows}


def _judged(trials: list[Mapping[str, Any]]) -> dict[str, int]:
  solved: dict[bool, list[bool]] = {True: [], False: []}
  for trial in trials:
    solved[bool(trial["plan_is_right"])].append(trial["success"])
  return {
    "n": len(trials),
    "right": len(solved[True]),
    "solved_right": sum(solved[True]),
    "solved_wrong": sum(solved[False]),
  }


def _web(found: Mapping[str, dict]) -> dict[str, list[str]]:
  """Lists web sources and policies, where that was measured."""
  return {
    "sources": sorted({name for r in found.values() for name in r["web"]}),
    "policies": [policy for policy in found if found[policy]["web"]],
  }


def _filmed(found: Mapping[str, dict]) -> Iterator[dict[str, Any]]:
  """Yields the suites that have films, with (policy, trial, anchor) of each."""
  number = itertools.count()
  for name, suite in next(iter(found.values()))["suites"].items():
    group, title = suite["group"], suite["title"]
    trials = [
      (policy, trial, f"film{next(number)}")
      for policy, result in found.items()
      for trial in result["suites"][name]["trials"]
      if trial["film"]
    ]
    if trials:
      full = title if group == title else f"{group}: {title}"
      yield {"title": full, "trials": trials}


def _first_films(filmed: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
  """Finds the anchor of the first film of each (policy, outcome)."""
  found: dict[tuple[str, str], str] = {}
  for suite in filmed:
    for policy, trial, anchor in suite["trials"]:
      found.setdefault((policy, trial["outcome"]), anchor)
  return found


def _encoded(film: storage.Path) -> str:
  return base64.b64encode(films.read_strip(film)).decode()


def _broken(found: Mapping[str, dict]) -> Iterator[tuple[str, str, dict]]:
  """Yields (policy, suite, trial) of each trial that was broken off."""
  for policy, result in found.items():
    for name, suite in result["suites"].items():
      for trial in suite["trials"]:
        if trial["error"]:
          yield policy, name, trial

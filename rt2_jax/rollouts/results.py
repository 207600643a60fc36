"""Reads and compares results of several policies; a table in Markdown.

A folder holds `{policy}.json` for each policy; see `describe` and `summarize`
for what stands in it.
"""

from __future__ import annotations

import collections
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from rt2_jax import storage
from rt2_jax.errors import UserError
from rt2_jax.rollouts.runner import Rollout
from rt2_jax.rollouts.trial import BROKEN_OFF, Benchmark

TABLE = "summary.md"


def describe(benchmark: Benchmark, name: str) -> dict[str, Any]:
  """Returns what tables and pages say of a benchmark, as JSON values."""
  return {
    "name": name,
    "title": benchmark.title or name,
    "notes": benchmark.notes,
    "settings": dict(benchmark.settings),
    "reasons": [*benchmark.reasons, BROKEN_OFF],
    "means": {title: list(groups) for title, groups in benchmark.means.items()},
    "baselines": {
      baseline: row.description for baseline, row in benchmark.baselines.items()
    },
  }


def summarize(
  rollouts: Sequence[Rollout], benchmark: Benchmark
) -> dict[str, Any]:
  """Returns one suite's numbers: n, successes, rate, interval, trials, …"""
  rollouts = sorted(rollouts, key=lambda r: r.trial.number)
  counts = collections.Counter(r.reason for r in rollouts)
  reasons = dict.fromkeys([*benchmark.reasons, BROKEN_OFF, *counts])
  return {
    **benchmark.suites[rollouts[0].trial.suite]._asdict(),
    **rate(sum(r.success for r in rollouts), len(rollouts)),
    "outcomes": {reason: counts[reason] for reason in reasons},
    "capped": sum(r.capped for r in rollouts),
    "mean_steps": float(np.mean([r.steps for r in rollouts])),
    "seeds": [r.trial.seed for r in rollouts],
    "trials": [_trial(r, benchmark) for r in rollouts],
  }


def _trial(rollout: Rollout, benchmark: Benchmark) -> dict[str, Any]:
  """Returns all but the images."""
  trial, plan = rollout.trial, rollout.plan
  return {
    "number": trial.number,
    "seed": trial.seed,
    "instruction": trial.instruction,
    "goal": benchmark.goal(trial),
    "tags": dict(trial.tags),
    "success": rollout.success,
    "outcome": rollout.reason,
    "details": dict(rollout.details),
    "steps": rollout.steps,
    "capped": rollout.capped,
    "plan": plan,
    "plan_is_right": benchmark.plan_is_right(trial, plan) if plan else None,
    "error": rollout.error,
    "film": rollout.film,
  }


def rate(successes: int, n: int) -> dict[str, Any]:
  """Returns a success rate with Wilson's 95% interval; 0 of 0 says nothing."""
  return {
    "n": n,
    "successes": successes,
    "rate": successes / n if n else 0.0,
    "interval": wilson(successes, n) if n else (0.0, 1.0),
  }


def wilson(successes: int, n: int) -> tuple[float, float]:
  """Returns Wilson's 95% interval of a rate."""
  interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
  return float(interval.low), float(interval.high)


def pool(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Pools several suites: they have equally many trials."""
  cells = list(cells)
  return rate(
    sum(cell["successes"] for cell in cells), sum(cell["n"] for cell in cells)
  )


# -------------------------------------------------------------------- files


def read(folder: storage.Path) -> dict[str, dict[str, Any]]:
  """Reads a folder's results by policy, the baselines last.

  Raises:
    UserError: there are none, one that cannot be read, or they are about
      other trials.
  """
  found = _read_files(folder)
  if not found:
    raise UserError(
      f"got no results in {str(folder)!r}, expected a file for each policy; "
      "run launch/rollout.py"
    )
  prints: dict[str, list[str]] = {}
  for path, result in found.items():
    prints.setdefault(result["trials_hash"], []).append(path.name)
  if len(prints) > 1:
    groups = "; ".join(", ".join(sorted(names)) for names in prints.values())
    raise UserError(
      f"got results of {len(prints)} different sets of trials in "
      f"{str(folder)!r} ({groups}), expected the same --suites, --episodes, "
      "--seed and settings of the benchmark for every policy; choose another "
      "--output"
    )
  results = {result["policy"]: result for result in found.values()}
  order = sorted(results, key=lambda p: (_baseline_number(results[p]), p))
  return {policy: results[policy] for policy in order}


def is_baseline(result: Mapping[str, Any]) -> bool:
  """Tells a baseline's result from a policy's."""
  return result["policy"] in result["benchmark"]["baselines"]


def _baseline_number(result: Mapping[str, Any]) -> int:
  baselines = list(result["benchmark"]["baselines"])
  return baselines.index(result["policy"]) if is_baseline(result) else -1


def check_fit(folder: storage.Path, new: Mapping[str, dict]) -> None:
  """Checks new results against those that a folder holds already.

  Args:
    folder: with results, or none.
    new: by policy, what is known before the first trial.

  Raises:
    UserError: results of other trials are there, those of another policy of
      the same name, or a file that is no result.
  """
  for path, there in _read_files(folder).items():
    for result in new.values():
      if there["trials_hash"] != result["trials_hash"]:
        raise UserError(
          f"got {_trials(result)}, expected those of {str(path)!r}: "
          f"{_trials(there)}; choose another --output, or the flags of "
          f"{there['command']!r}"
        )
    result = new.get(path.stem, there)
    if (result["what"], result["config_hash"]) != (
      there["what"],
      there["config_hash"],
    ):
      raise UserError(
        f"got {result['what']!r} (config {result['config_hash']}), expected "
        f"{there['what']!r} (config {there['config_hash']}), whose results "
        f"{str(path)!r} holds; choose another --output"
      )


def _trials(result: Mapping[str, Any]) -> str:
  benchmark = result["benchmark"]
  settings = "".join(
    f" --{name}={value}" for name, value in benchmark["settings"].items()
  )
  return (
    f"trials {result['trials_hash']} (--benchmark={benchmark['name']} "
    f"--seed={result['seed']} --episodes={result['trials_per_suite']}"
    f"{settings})"
  )


def _read_files(folder: storage.Path) -> dict[storage.Path, dict[str, Any]]:
  """Reads every result of a folder.

  Raises:
    UserError: a file that is none.
  """
  found = {}
  for path in sorted(folder.glob("*.json")):
    try:
      result = json.loads(path.read_text())
      is_result = {"trials_hash", "benchmark"} <= result.keys()
    except (ValueError, AttributeError):
      result, is_result = (), False
    if not is_result:
      older = " of this version" if "episodes_hash" in result else ""
      raise UserError(
        f"got {str(path)!r}, which is no result{older} of launch/rollout.py; "
        "expected a folder of results alone; remove the file, or choose "
        "another --output"
      )
    found[path] = result
  return found


# ------------------------------------------------------------------- groups


def groups(result: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns the suites of each group."""
  found: dict[str, list[str]] = {}
  for name, suite in result["suites"].items():
    found.setdefault(suite["group"], []).append(name)
  return found


def by_topic(results: Mapping[str, dict]) -> dict[str, dict[str, dict]]:
  """Pools the suites of each topic: for each topic, by policy."""
  topics: dict[str, list[str]] = {}
  for name, suite in next(iter(results.values()))["suites"].items():
    topics.setdefault(suite["topic"], []).append(name)
  return {topic: pool_each(results, names) for topic, names in topics.items()}


def by_tag(
  results: Mapping[str, dict],
) -> dict[tuple[str, str], dict[str, dict]]:
  """Pools all trials of each tag: for each (key, value), by policy.

  Keys and values come in the order of their first trials.
  """
  tags: dict[str, dict[str, None]] = {}
  for trial in _all_trials(next(iter(results.values()))):
    for key, value in trial["tags"].items():
      tags.setdefault(key, {})[value] = None
  return {
    (key, value): {
      policy: _of_tag(result, key, value) for policy, result in results.items()
    }
    for key, values in tags.items()
    for value in values
  }


def _of_tag(result: Mapping[str, Any], key: str, value: str) -> dict[str, Any]:
  trials = [t for t in _all_trials(result) if t["tags"].get(key) == value]
  return rate(sum(trial["success"] for trial in trials), len(trials))


def _all_trials(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  suites = result["suites"].values()
  return [trial for suite in suites for trial in suite["trials"]]


def pool_each(
  results: Mapping[str, dict], suites: Iterable[str]
) -> dict[str, dict]:
  """Pools suites, by policy."""
  suites = list(suites)
  return {
    policy: pool(result["suites"][name] for name in suites)
    for policy, result in results.items()
  }


# -------------------------------------------------------------------- table


def write_table(folder: storage.Path) -> storage.Path:
  """Writes the table about all results of a folder; returns its path.

  Raises:
    UserError: as `read`.
  """
  path = folder / TABLE
  storage.write(path, table(read(folder)))
  return path


def table(results: Mapping[str, dict]) -> str:
  """Returns success by topic and by tag, in %, and what the web taught.

  "Web answers" is the mean accuracy over all web sources; behind it, how much
  that is of the accuracy of the run that training started from.
  """
  pooled = [
    *by_topic(results).items(),
    *((f"all, {tag}", cells) for (_, tag), cells in by_tag(results).items()),
  ]
  rows = [
    [
      f"{name} (n = {next(iter(cells.values()))['n']})",
      *map(_percent, cells.values()),
    ]
    for name, cells in pooled
  ]
  if any(result["web"] for result in results.values()):
    rows.append(["web answers", *map(_web, results.values())])
  lines = [["", *results], ["---"] * (len(results) + 1), *rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(cell: Mapping[str, Any]) -> str:
  low, high = (100 * edge for edge in cell["interval"])
  return f"{100 * cell['rate']:.0f} ({low:.0f} to {high:.0f})"


def _web(result: Mapping[str, Any]) -> str:
  """Averages the sources that were measured before and after."""
  now, before = result["web"], result["web_before"]
  if not now:
    return ""
  mean = statistics.mean(now.values())
  shared = now.keys() & before.keys()
  if not shared:
    return f"{100 * mean:.0f}"
  kept = sum(now[n] for n in shared) / sum(before[n] for n in shared)
  return f"{100 * mean:.0f} ({100 * kept:.0f}% kept)"

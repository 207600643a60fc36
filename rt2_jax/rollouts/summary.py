"""Results of several policies as few numbers, and as a table in Markdown."""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from rt2_jax import local_files
from rt2_jax.envs.tabletop import instructions
from rt2_jax.envs.tabletop.environment import SUCCESS
from rt2_jax.envs.tabletop.suites import GROUPS, SUITES, Suite
from rt2_jax.errors import UserError
from rt2_jax.rollouts.runner import wilson

TABLE = "summary.md"
BASELINES = ("null", "random", "guess", "oracle")


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes the table about all results of a folder; returns its path.

  Raises:
    UserError: as `read`.
  """
  path = folder / TABLE
  local_files.write(path, table(read(folder)))
  return path


def table(results: Mapping[str, dict]) -> str:
  """Success by topic and by family of tasks, in %, and what the web taught.

  "Web answers" is the mean accuracy over all web sources; behind it, how much
  that is of the accuracy of the run that training started from.
  """
  rows = {
    f"{topic} (n = {next(iter(cells.values()))['n']})": [
      _percent(cell) for cell in cells.values()
    ]
    for topic, cells in by_topic(results).items()
  }
  for family in instructions.FAMILIES:
    cells = [_of_family(result, family) for result in results.values()]
    if cells[0]["n"]:
      rows[f"all, {family} (n = {cells[0]['n']})"] = [*map(_percent, cells)]
  if any(result["web"] for result in results.values()):
    rows["web answers"] = [*map(_web, results.values())]
  lines = [
    ["", *results],
    ["---"] * (len(results) + 1),
    *([name, *cells] for name, cells in rows.items()),
  ]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def by_topic(results: Mapping[str, dict]) -> dict[str, dict[str, dict]]:
  """The suites that ask one thing, pooled: for each topic, by policy.

  A topic is a group of suites; of "unseen", what it is that demonstrations do
  not show.
  """
  topics: dict[str, list[str]] = {}
  for name in next(iter(results.values()))["suites"]:
    topics.setdefault(_topic(SUITES[name]), []).append(name)
  return {topic: _pool_each(results, names) for topic, names in topics.items()}


def _topic(suite: Suite) -> str:
  what = suite.title.split(",")[0]
  return f"unseen {what}" if suite.group == "unseen" else suite.group


def _pool_each(
  results: Mapping[str, dict], suites: Iterable[str]
) -> dict[str, dict]:
  """The suites as one, by policy."""
  return {
    policy: pool(result["suites"][name] for name in suites)
    for policy, result in results.items()
  }


def _of_family(result: Mapping[str, Any], family: str) -> dict[str, Any]:
  """All episodes of a family, pooled."""
  episodes = [
    episode
    for suite in result["suites"].values()
    for episode in suite["episodes"]
    if episode["family"] == family
  ]
  solved = sum(episode["outcome"] == SUCCESS for episode in episodes)
  return rate(solved, len(episodes))


def _percent(cell: Mapping[str, Any]) -> str:
  low, high = (100 * edge for edge in cell["interval"])
  return f"{100 * cell['rate']:.0f} ({low:.0f} to {high:.0f})"


def _web(result: Mapping[str, Any]) -> str:
  """Of the sources that were measured before and after."""
  now, before = result["web"], result["web_before"]
  if not now:
    return ""
  mean = statistics.mean(now.values())
  shared = now.keys() & before.keys()
  if not shared:
    return f"{100 * mean:.0f}"
  kept = sum(now[n] for n in shared) / sum(before[n] for n in shared)
  return f"{100 * mean:.0f} ({100 * kept:.0f}% kept)"


def read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """A folder's results by policy, the baselines last.

  Raises:
    UserError: there are none, one that cannot be read, or they are about
      other episodes.
  """
  found = _read_files(folder)
  if not found:
    raise UserError(
      f"got no results in {str(folder)!r}, expected a file for each policy; "
      "run launch/rollout.py"
    )
  prints: dict[str, list[str]] = {}
  for path, result in found.items():
    prints.setdefault(result["episodes_hash"], []).append(path.name)
  if len(prints) > 1:
    groups = "; ".join(", ".join(sorted(names)) for names in prints.values())
    raise UserError(
      f"got results of {len(prints)} different sets of episodes in "
      f"{str(folder)!r} ({groups}), expected the same --suites, --episodes, "
      "--seed and picture size for every policy; choose another --output"
    )
  results = {result["policy"]: result for result in found.values()}
  order = sorted(
    results,
    key=lambda p: (BASELINES.index(p) if p in BASELINES else -1, p),
  )
  return {policy: results[policy] for policy in order}


def check_fit(folder: pathlib.Path, new: Mapping[str, dict]) -> None:
  """Checks new results against those that a folder holds already.

  Args:
    folder: with results, or none.
    new: by policy, what is known before the first episode.

  Raises:
    UserError: results of other episodes are there, those of another policy of
      the same name, or a file that is no result.
  """
  for path, there in _read_files(folder).items():
    for result in new.values():
      if there["episodes_hash"] != result["episodes_hash"]:
        raise UserError(
          f"got {_episodes(result)}, expected those of {str(path)!r}: "
          f"{_episodes(there)}; choose another --output, or the flags of "
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


def _episodes(result: Mapping[str, Any]) -> str:
  return (
    f"episodes {result['episodes_hash']} (--seed={result['seed']} "
    f"--episodes={result['episodes_per_suite']} "
    f"--image_size={result['image_size']} --max_steps={result['max_steps']})"
  )


def _read_files(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, Any]]:
  """Reads every result of a folder.

  Raises:
    UserError: a file that is none.
  """
  found = {}
  for path in sorted(folder.glob("*.json")):
    try:
      result = json.loads(path.read_text())
      is_result = "episodes_hash" in result and "suites" in result
    except (ValueError, TypeError):
      is_result = False
    if not is_result:
      raise UserError(
        f"got {str(path)!r}, which is no result of launch/rollout.py; expected "
        "a folder of results alone; remove the file, or choose another --output"
      )
    found[path] = result
  return found


def pool(cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Several suites as one: they have equally many episodes."""
  cells = list(cells)
  return rate(
    sum(cell["successes"] for cell in cells), sum(cell["n"] for cell in cells)
  )


def rate(successes: int, n: int) -> dict[str, Any]:
  """With Wilson's 95% interval; 0 of 0 says nothing."""
  return {
    "n": n,
    "successes": successes,
    "rate": successes / n if n else 0.0,
    "interval": wilson(successes, n) if n else (0.0, 1.0),
  }


def grouped(rows: Iterable[str]) -> dict[str, list[str]]:
  """The suites of each group that has any."""
  names = list(rows)
  grouped = {g: [s for s in names if SUITES[s].group == g] for g in GROUPS}
  return {group: suites for group, suites in grouped.items() if suites}


def by_group(
  results: Mapping[str, dict], rows: Iterable[str]
) -> dict[str, dict[str, dict]]:
  """Each group pooled, by policy."""
  return {
    group: _pool_each(results, suites)
    for group, suites in grouped(rows).items()
  }

"""One page about all policies that were tried on the same episodes.

A folder holds what `launch/rollout.py` wrote: `{policy}.json`, and films in
`films/{policy}/`. The page needs no network and no other file; only its links
to the films do. Tables are laid out as the paper's tables 4 to 6.
"""

from __future__ import annotations

import base64
import html
import pathlib
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

from rt2_jax import local_files
from rt2_jax.envs.tabletop.environment import SUCCESS
from rt2_jax.envs.tabletop.suites import SUITES
from rt2_jax.rollouts import films, plots, summary
from rt2_jax.rollouts.runner import OUTCOMES

PAGE = "report.html"
FIGURE = "success.svg"
_EMERGENT = ("symbol understanding", "reasoning", "people")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #222; }
tr.group th { padding-top: .9rem; border-bottom: 1px solid #bbb; }
tr.mean td { font-style: italic; border-top: 1px solid #ddd; }
td small { color: #666; }
svg { max-width: 100%; height: auto; }
figure { margin: .6rem 0; } figcaption { font-size: 13px; }
figure img { max-width: 100%; image-rendering: auto; }
summary { cursor: pointer; padding: .2rem 0; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; }
code { font-size: 13px; overflow-wrap: anywhere; }
"""


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes the page about all results of a folder; returns its path.

  The drawing of success lies beside it too, for other pages.

  Raises:
    UserError: no results, results of other episodes, or a film is missing.
  """
  results = summary.read(folder)
  first = next(iter(results.values()))
  rows = {
    name: SUITES[name].title for name in SUITES if name in first["suites"]
  }
  success = plots.draw_success(summary.by_topic(results))
  local_files.write(folder / FIGURE, success)
  sections = [
    _introduction(results),
    "<h2>Success</h2>",
    _success_table(results, rows),
    success,
    "<h2>How episodes ended</h2>",
    plots.draw_outcomes(
      {
        policy: [(rows[s], result["suites"][s]["outcomes"]) for s in rows]
        for policy, result in results.items()
      }
    ),
    _outcome_table(results),
    _plan_table(results, rows),
    _web_table(results),
    "<h2>Films</h2>",
    *(_films(folder, suite, title, results) for suite, title in rows.items()),
    _broken(results),
    _how(results),
  ]
  path = folder / PAGE
  local_files.write(
    path,
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    "<title>Rollouts on the tabletop</title>"
    f"<style>{_STYLE}</style></head><body>\n" + "\n".join(sections) + "\n"
    "</body></html>\n",
  )
  return path


def _introduction(results: Mapping[str, dict]) -> str:
  first = next(iter(results.values()))
  return (
    "<h1>Rollouts on the tabletop</h1>"
    f"<p>Every policy met the same {first['episodes_per_suite']} episodes of "
    f"each suite (seed {first['seed']}, episodes "
    f"<code>{first['episodes_hash']}</code>). Success is judged from the "
    "simulation's state, in % with Wilson's 95% interval; an episode that was "
    "broken off counts as a failure. <b>null</b> rests, <b>random</b> moves at "
    "random; <b>guess</b> is the scripted expert who takes anything that lies "
    "there for the thing that the suite is about (chance for a policy that "
    "moves well and knows all else), <b>oracle</b> the expert itself.</p>"
  )


def _success_table(results: Mapping[str, dict], rows: Mapping[str, str]) -> str:
  lines = [_header("suite", results)]
  for group, suites in summary.grouped(rows).items():
    if suites != [group.replace(" tasks", "")]:
      span = len(results) + 1
      lines.append(f'<tr class="group"><th colspan="{span}">{group}</th></tr>')
    for suite in suites:
      cells = {p: result["suites"][suite] for p, result in results.items()}
      lines.append(_row(rows[suite], cells))
    if len(suites) > 1:
      cells = summary.by_group(results, suites)[group]
      lines.append(_row(f"{group}, average", cells, "mean"))
  pooled = summary.by_group(results, rows)
  if all(group in pooled for group in _EMERGENT):
    # As in table 5: the mean of the three means, which has no simple interval.
    cells = {
      p: {"rate": sum(pooled[g][p]["rate"] for g in _EMERGENT) / 3}
      for p in results
    }
    lines.append(_row("emergent, mean of the three averages", cells, "mean"))
  return f"<table>{''.join(lines)}</tbody></table>"


def _header(first: str, columns: Iterable[str]) -> str:
  names = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
  return f"<thead><tr><th>{first}</th>{names}</tr></thead><tbody>"


def _row(title: str, cells: Mapping[str, Mapping], style: str = "") -> str:
  """A row of rates; the best of the policies that are no baselines is bold."""
  tried = [c["rate"] for p, c in cells.items() if p not in summary.BASELINES]
  texts = []
  for policy, cell in cells.items():
    text = f"{100 * cell['rate']:.0f}"
    if policy not in summary.BASELINES and cell["rate"] == max(tried):
      text = f"<b>{text}</b>"
    hint = ""
    if "interval" in cell:
      low, high = (100 * edge for edge in cell["interval"])
      text += f" <small>{low:.0f} to {high:.0f}</small>"
      hint = f' title="{cell["successes"]} of {cell["n"]}"'
    texts.append(f"<td{hint}>{text}</td>")
  return f'<tr class="{style}"><td>{title}</td>{"".join(texts)}</tr>'


def _outcome_table(results: Mapping[str, dict]) -> str:
  """How many episodes of each policy ended how, over all suites."""
  lines = [_header("all suites", results)]
  for outcome in OUTCOMES:
    counts = [
      sum(suite["outcomes"][outcome] for suite in result["suites"].values())
      for result in results.values()
    ]
    texts = "".join(f"<td>{count}</td>" for count in counts)
    lines.append(f"<tr><td>{_dot(outcome)} {outcome}</td>{texts}</tr>")
  capped = "".join(
    f"<td>{sum(s['capped'] for s in result['suites'].values())}</td>"
    for result in results.values()
  )
  lines.append(f'<tr class="mean"><td>met the step cap</td>{capped}</tr>')
  return f"<table>{''.join(lines)}</tbody></table>"


def _plan_table(results: Mapping[str, dict], rows: Mapping[str, str]) -> str:
  """Which plans named the thing to act on, and what became of them."""
  planning = {
    policy: result
    for policy, result in results.items()
    if any(e["plan"] for s in result["suites"].values() for e in s["episodes"])
  }
  if not planning:
    return ""
  lines = [_header("suite", planning)]
  for suite, title in rows.items():
    cells = "".join(
      f"<td>{_plans_and_successes(result['suites'][suite]['episodes'])}</td>"
      for result in planning.values()
    )
    lines.append(f"<tr><td>{title}</td>{cells}</tr>")
  return (
    "<h2>Plans</h2><p>How many plans named the thing that was to be acted on, "
    "and how many of these episodes, and of the others, succeeded.</p>"
    f"<table>{''.join(lines)}</tbody></table>"
  )


def _plans_and_successes(episodes: Sequence[Mapping]) -> str:
  solved = {True: [], False: []}
  for episode in episodes:
    name = episode["plan"].partition("<loc")[0].strip()
    solved[name == episode["target"]].append(episode["outcome"] == SUCCESS)
  right, wrong = solved[True], solved[False]
  return (
    f"{len(right)} of {len(episodes)} <small>{sum(right)} of {len(right)}, "
    f"{sum(wrong)} of {len(wrong)}</small>"
  )


def _dot(outcome: str) -> str:
  colour = plots.outcome_colour(outcome)
  return f'<span class="dot" style="background:{colour}"></span>'


def _web_table(results: Mapping[str, dict]) -> str:
  """What the policies still know of the web, where that was measured."""
  sources = sorted({name for r in results.values() for name in r["web"]})
  if not sources:
    return ""
  columns = [policy for policy in results if results[policy]["web"]]
  lines = [_header("web source", columns)]
  for name in sources:
    accuracies = [results[policy]["web"].get(name) for policy in columns]
    texts = "".join(
      f"<td>{'' if a is None else f'{100 * a:.1f}'}</td>" for a in accuracies
    )
    lines.append(f"<tr><td>{html.escape(name)}</td>{texts}</tr>")
  return (
    "<h2>Questions about pictures</h2><p>Right answers on held-out web "
    "examples, in %, as launch/evaluate.py measured them.</p>"
    f"<table>{''.join(lines)}</tbody></table>"
  )


def _films(
  folder: pathlib.Path, suite: str, title: str, results: Mapping[str, dict]
) -> str:
  """The strips of a suite, folded away."""
  figures = []
  for policy, result in results.items():
    for episode in result["suites"][suite]["episodes"]:
      if not episode["film"]:
        continue
      strip = base64.b64encode(films.read_strip(folder / episode["film"]))
      caption = (
        f"{_dot(episode['outcome'])} <b>{html.escape(policy)}</b>: "
        f"“{html.escape(episode['instruction'])}” "
        f"({_target(episode)}): {episode['outcome']}, {episode['steps']} steps"
        f"{_plan(episode)}"
      )
      figures.append(
        f'<figure><a href="{urllib.parse.quote(episode["film"])}">'
        f'<img alt="film strip" src="data:image/jpeg;base64,{strip.decode()}">'
        f"</a><figcaption>{caption}</figcaption></figure>"
      )
  group = SUITES[suite].group
  name = title if group == title else f"{group}: {title}"
  if not figures:
    return ""
  opened = " open" if suite == next(iter(SUITES)) else ""
  return (
    f"<details{opened}><summary>{name}</summary>{''.join(figures)}</details>"
  )


def _target(episode: Mapping[str, str]) -> str:
  parts = [episode["target"], episode["reference"] or episode["side"]]
  return html.escape(" → ".join(filter(None, parts)))


def _plan(episode: Mapping[str, str]) -> str:
  plan = html.escape(episode["plan"])
  return f"; plan: <code>{plan}</code>" if plan else ""


def _broken(results: Mapping[str, dict]) -> str:
  """Every episode that was broken off, with its error."""
  lines = [
    f"<li>{html.escape(policy)}, {suite} {e['number']} (seed {e['seed']}): "
    f"{html.escape(e['error'])}</li>"
    for policy, result in results.items()
    for suite, numbers in result["suites"].items()
    for e in numbers["episodes"]
    if e["error"]
  ]
  return f"<h2>Broken off</h2><ul>{''.join(lines)}</ul>" if lines else ""


def _how(results: Mapping[str, dict]) -> str:
  """What was run, to run it again."""
  lines = [
    f"<li><b>{html.escape(policy)}</b>: {html.escape(result['what'])}; "
    f"config <code>{result['config_hash'] or 'none'}</code>; "
    f"{result['seconds']:.0f} s; "
    f"<code>{html.escape(result['command'])}</code></li>"
    for policy, result in results.items()
  ]
  return f"<h2>How it was made</h2><ul>{''.join(lines)}</ul>"

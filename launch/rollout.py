"""Tries policies on a simulated benchmark: suites, numbers, films, one report.

  python launch/rollout.py --policy=runs/a,runs/b --output=runs/rollouts
  python launch/rollout.py --policy=null,random,guess,oracle \\
    --output=runs/rollouts
  python launch/rollout.py --benchmark=my_lab.sim:benchmark \\
    --policy=my_lab.policy:act --output=runs/kitchen

A policy is a run's workdir, a folder of `launch/convert.py to_hf`, a baseline
of the benchmark, an import path of a function from observations to chunks of
actions (`rollouts.trial.Act`), or the address of launch/serve.py, such as
ws://127.0.0.1:8000. A benchmark is `tabletop` or an import path; its suites are
rows of rt2_jax/envs/tabletop/suites.py.

Every policy meets the same trials. OUTPUT gets `{policy}.json` for each, and
`report.html`, `success.svg` and `summary.md` about all that are in the folder,
also from earlier calls; a run is called after its folder. A call that does not
fit the results that are there already ends before the first trial; the same
call again plays again.

Baselines of the tabletop: `null` rests, `random` moves at random, `guess` is
the scripted expert who picks a random object for the one that a suite is about
(the chance level for perfect motor skill), `oracle` the expert itself.
"""

import json
import os
import sys
import time
from typing import Any

from absl import app, flags
from tqdm import tqdm

from launch import policy_flag, program
from launch.policy_flag import Tried
from rt2_jax import import_path, shipped, storage
from rt2_jax.errors import UserError
from rt2_jax.rollouts import films, report, results, runner
from rt2_jax.rollouts.trial import (
  Benchmark,
  Trial,
  check_benchmark,
  choose_suites,
)

_BENCHMARK = flags.DEFINE_string(
  "benchmark", "tabletop", "Or an import path, such as my_lab.sim:benchmark."
)
_POLICY = flags.DEFINE_list(
  "policy", [], "Workdirs, exported folders, baselines, import paths, services."
)
_SUITES = flags.DEFINE_list("suites", ["all"], "Names of suites or groups.")
_EPISODES = flags.DEFINE_integer("episodes", 50, "Trials of each suite.", 1)
_NUM_ENVS = flags.DEFINE_integer("num_envs", 16, "Stepped at once.", 1)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "That simulate; default: one for each CPU.", 1
)
_EXECUTE = flags.DEFINE_integer(
  "execute", 1, "Actions of a chunk taken before the policy is asked again.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Gives other trials.", 0)
_STEP = flags.DEFINE_integer(
  "step", None, "Checkpoint of a run; default: the newest.", 0
)
_SOURCE = flags.DEFINE_string(
  "source", None, "Robot source whose actions to use, where there are several."
)
_FILMS = flags.DEFINE_integer("films", 2, "Of each suite.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")

_OF_TABLETOP = {
  "families": flags.DEFINE_list(
    "families", [], "Of tabletop tasks: move_to, pick, …; default: all."
  ),
  "image_size": flags.DEFINE_integer(
    "image_size", 96, "Of the tabletop's camera.", 16, 1024
  ),
  "max_steps": flags.DEFINE_integer(
    "max_steps", 60, "Of a trial on the tabletop.", 1
  ),
  "path": flags.DEFINE_string(
    "pictures",
    str(shipped.FOLDER / "data/pictures.zip"),
    "What data/make_pictures.py writes, for the tabletop.",
  ),
  "concepts": flags.DEFINE_list(
    "concepts", [], "What lies on the tabletop; default: all in the pictures."
  ),
}


@program.main
def main():
  benchmark = open_benchmark(_BENCHMARK.value)
  values = policy_flag.names(_POLICY.value, benchmark)
  folder = storage.locate(_OUTPUT.value, "--output")
  suites = choose_suites(benchmark.suites, _SUITES.value)
  trials = benchmark.trials(suites, _EPISODES.value, _SEED.value)
  tried = {
    name: policy_flag.find(value, benchmark, trials, _SOURCE.value, _STEP.value)
    for name, value in values.items()
  }
  known = {
    name: {
      "policy": name,
      "what": one.what,
      "command": " ".join(["python", *sys.argv]),
      "config_hash": one.config_hash,
      "seed": _SEED.value,
      "trials_per_suite": _EPISODES.value,
      "trials_hash": benchmark.fingerprint(trials),
      "execute": _EXECUTE.value,
      "benchmark": results.describe(benchmark, _BENCHMARK.value),
    }
    for name, one in tried.items()
  }
  open_folder(folder)
  results.check_fit(folder, known)
  for name, one in tried.items():
    numbers = play(name, one, trials, benchmark, folder)
    write(known[name] | numbers, folder / f"{name}.json")
  print(f"table: {results.write_table(folder)}")
  print(f"report: {report.write(folder)}")


def open_benchmark(name: str) -> Benchmark:
  """Opens a benchmark by its name or import path.

  Raises:
    UserError: an unknown name, an import path that is none, or flags that this
      benchmark does not have.
  """
  if name == "tabletop":
    from rt2_jax.envs.tabletop.benchmark import Tabletop

    return Tabletop(**{key: flag.value for key, flag in _OF_TABLETOP.items()})
  if not import_path.is_import_path(name):
    raise UserError(
      f"got {name!r} for --benchmark, expected 'tabletop' or an import path "
      "such as my_lab.sim:benchmark"
    )
  given = [flag.name for flag in _OF_TABLETOP.values() if flag.present]
  if given:
    raise UserError(
      f"got --{given[0]} with --benchmark={name}, expected it with the "
      "tabletop alone; remove it"
    )
  return check_benchmark(import_path.load(name, "--benchmark"), name)


def open_folder(folder: storage.Path) -> None:
  """Makes the folder for results.

  Raises:
    UserError: it cannot be made, or nothing can be written there.
  """
  storage.output_folder(folder, "--output")
  if not (storage.is_url(folder) or os.access(folder, os.W_OK)):
    raise UserError(
      f"got --output={folder}, where nothing can be written; choose another "
      "--output"
    )


def play(
  name: str,
  tried: Tried,
  trials: list[Trial],
  benchmark: Benchmark,
  folder: storage.Path,
) -> dict[str, Any]:
  """Runs all trials, writes their films and returns their numbers."""
  start = time.monotonic()
  ended = runner.run(
    tried.load and tried.load(),
    trials,
    benchmark,
    _NUM_ENVS.value,
    _NUM_PROCESSES.value,
    spec=tried.spec,
    execute=_EXECUTE.value,
    num_filmed=_FILMS.value,
    expert=tried.expert,
    drafted=tried.drafted,
  )
  done: dict[str, list[runner.Rollout]] = {t.suite: [] for t in trials}
  successes = 0
  bar = tqdm(ended, name, len(trials), unit=" trials")
  for i, one in enumerate(bar, 1):
    done[one.trial.suite].append(one)
    successes += one.success
    bar.set_postfix_str(f"success {successes / i:.0%}", refresh=False)
    if one.images:
      one.film = f"films/{name}/{one.trial.suite}_{one.trial.number}.gif"
      films.write_film(one.images, folder / one.film, one.control_hz)
      one.images = []
  numbers = {s: results.summarize(r, benchmark) for s, r in done.items()}
  for suite, cell in numbers.items():
    print_line(suite, cell, benchmark.reasons[0])
  return {
    "seconds": round(time.monotonic() - start, 1),
    "web": tried.web,
    "web_before": tried.web_before,
    "suites": numbers,
  }


def write(result: dict[str, Any], path: storage.Path) -> None:
  storage.write(path, json.dumps(result, allow_nan=False) + "\n")
  print(f"numbers: {path}")


def print_line(suite: str, cell: dict, success: str) -> None:
  low, high = cell["interval"]
  outcomes = ", ".join(
    f"{count} {outcome}"
    for outcome, count in cell["outcomes"].items()
    if count and outcome != success
  )
  print(
    f"{suite:<22}{cell['rate']:>6.1%}  [{low:.1%}, {high:.1%}]  "
    f"n={cell['n']}  {outcomes}"
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)

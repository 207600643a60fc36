"""Tries policies on the simulated tabletop: suites, numbers, films, one page.

  python launch/rollout.py --workdir=runs/a,runs/b --output=runs/rollouts
  python launch/rollout.py --policy=null,random,guess,oracle \\
    --output=runs/rollouts

Every policy meets the same episodes. OUTPUT gets `{policy}.json` for each, and
`report.html`, `success.svg` and `summary.md` about all that are in the folder,
also from earlier calls; a run is called after its folder. A call that does not
fit the results that are there already ends before the first episode; the same
call again plays again. Suites are rows of rt2_jax/envs/tabletop/suites.py.

Baselines: `null` rests, `random` moves at random, `guess` is the scripted
expert who takes anything for the thing that a suite is about (chance for who
moves well and knows all else), `oracle` the expert itself.
"""

import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import absl.logging
from absl import app, flags
from tqdm import tqdm

from rt2_jax import local_files
from rt2_jax.actions import TABLETOP
from rt2_jax.envs.tabletop import pictures, suites
from rt2_jax.envs.tabletop.environment import SUCCESS, TabletopConfig
from rt2_jax.errors import UserError, ends_in_one_message, unknown_name
from rt2_jax.rollouts import films, report, runner, simulation, summary, trials

_WORKDIR = flags.DEFINE_list("workdir", [], "Of training runs.")
_POLICY = flags.DEFINE_list("policy", [], "Baselines: null, random, …")
_SUITES = flags.DEFINE_list("suites", ["all"], "Names of suites or groups.")
_FAMILIES = flags.DEFINE_list(
  "families", [], "Of tasks: move_to, pick, …; default: all of a suite."
)
_EPISODES = flags.DEFINE_integer("episodes", 50, "Of each suite.", 1)
_NUM_ENVS = flags.DEFINE_integer("num_envs", 16, "Stepped at once.", 1)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "That simulate; default: one for each CPU.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Gives other episodes.", 0)
_STEP = flags.DEFINE_integer(
  "step", None, "Checkpoint; default: the newest.", 0
)
_SOURCE = flags.DEFINE_string(
  "source", None, "Robot source whose actions to use, where there are several."
)
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size", 96, "Of the camera, as in the demonstrations.", 16, 1024
)
_MAX_STEPS = flags.DEFINE_integer("max_steps", 60, "Of an episode.", 1)
_FILMS = flags.DEFINE_integer("films", 2, "Of each suite.", 0)
_PICTURES = flags.DEFINE_string(
  "pictures",
  str(pathlib.Path(__file__).parents[1] / "data/pictures.zip"),
  "What data/make_pictures.py writes.",
)
_CONCEPTS = flags.DEFINE_list(
  "concepts", [], "What lies on the table; default: all that pictures show."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")


class Tried(NamedTuple):
  """A policy with what the report says of it.

  Attributes:
    what: in words.
    load: gives the policy; None for the scripted expert.
    expert: which task the expert takes an episode for.
    config_hash: of a run's config; "" for a baseline.
    web: accuracy on each web source, where it was measured.
    web_before: likewise, of the run that training started from.
  """

  what: str
  load: Callable[[], runner.Policy] | None
  expert: Callable = runner.asked
  config_hash: str = ""
  web: dict[str, float] = {}  # noqa: RUF012
  web_before: dict[str, float] = {}  # noqa: RUF012


_BASELINES = {
  "null": Tried("rests with an open hand", lambda: runner.null),
  "random": Tried("moves at random", lambda: runner.random),
  "guess": Tried(
    "the expert, who guesses the described thing", None, runner.guessed
  ),
  "oracle": Tried("the scripted expert", None),
}


@ends_in_one_message
def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"got {argv[1:]}, expected flags only")
  absl.logging.set_verbosity(absl.logging.WARNING)
  runs = check_names()
  folder = local_files.local_path(_OUTPUT.value, "--output")
  known = pictures.load(_PICTURES.value).only(_CONCEPTS.value)
  chosen = suites.only(suites.choose(_SUITES.value), _FAMILIES.value)
  episodes = trials.draw(chosen, known, _EPISODES.value, _SEED.value)
  settings = {"image_size": _IMAGE_SIZE.value, "max_steps": _MAX_STEPS.value}
  tried = {name: find(path, episodes) for name, path in runs.items()}
  tried |= {name: _BASELINES[name] for name in _POLICY.value}
  results = {
    name: {
      "policy": name,
      "what": one.what,
      "command": " ".join(["python", *sys.argv]),
      "config_hash": one.config_hash,
      "seed": _SEED.value,
      "episodes_per_suite": _EPISODES.value,
      "episodes_hash": trials.fingerprint(episodes, known, **settings),
      **settings,
    }
    for name, one in tried.items()
  }
  open_folder(folder)
  summary.check_fit(folder, results)
  for name, one in tried.items():
    numbers = play(name, one, episodes, TabletopConfig(**settings), folder)
    write(results[name] | numbers, folder / f"{name}.json")
  print(f"table: {summary.write(folder)}")
  print(f"page: {report.write(folder)}")


def check_names() -> dict[str, str]:
  """The workdirs by their names.

  Raises:
    UserError: nothing to try, an unknown baseline, a workdir without a
      checkpoint, or one name twice.
  """
  for name in _POLICY.value:
    if name not in _BASELINES:
      raise unknown_name("--policy", name, _BASELINES)
  runs = [(pathlib.Path(path).resolve().name, path) for path in _WORKDIR.value]
  names = [name for name, _ in runs] + _POLICY.value
  if not names:
    raise UserError("got nothing to try, expected --workdir or --policy")
  if len(set(names)) < len(names) or {n for n, _ in runs} & set(_BASELINES):
    raise UserError(
      f"got names {names}, expected another one for each policy: a run is "
      "called after its folder; rename it"
    )
  if runs:
    # Baselines need no JAX.
    from rt2_jax import platforms
    from rt2_jax.checkpoint import Checkpoints

    platforms.prepare()
    for _, path in runs:
      Checkpoints.open_run(path).close()
  return dict(runs)


def open_folder(folder: pathlib.Path) -> None:
  """Makes the folder for results.

  Raises:
    UserError: it cannot be made, or nothing can be written there.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    writable = os.access(folder, os.W_OK)
  except OSError as error:
    raise UserError(
      f"got --output={folder}, which cannot be made ({error.strerror}); "
      "expected a folder that can be written; choose another --output"
    ) from error
  if not writable:
    raise UserError(
      f"got --output={folder}, where nothing can be written; choose another "
      "--output"
    )


def find(workdir: str, episodes: list[trials.Episode]) -> Tried:
  """Finds the policy of a run, without reading its parameters.

  Raises:
    UserError: no checkpoint there, one for another robot, or instructions
      that are longer than its prompt.
  """
  from rt2_jax.checkpoint import Checkpoints
  from rt2_jax.checkpoint_meta import CheckpointMeta
  from rt2_jax.policy import Policy
  from rt2_jax.prompt import Prompt
  from rt2_jax.tokenizer import Tokenizer
  from rt2_jax.train_config import config_hash

  checkpoints = Checkpoints.open_run(workdir)
  # Training may save another one while this plays.
  step = checkpoints.latest_step() if _STEP.value is None else _STEP.value
  meta, model_file = checkpoints.restore_meta(step)
  checkpoints.close()
  actions, spec = CheckpointMeta.from_dict(meta).robot(_SOURCE.value)
  names = actions.space.names if actions else ()
  if names != TABLETOP.names or spec.num_images > 1:
    raise UserError(
      f"got {workdir}, which acts with {names or 'no robot'} on "
      f"{spec.num_images} image(s), expected {TABLETOP.names} on one; "
      "pass the run of a model that was trained on the tabletop"
    )
  prompt = Prompt(Tokenizer(model_file), **meta["prompt"])
  for episode in episodes:  # raises where one is too long
    prompt.robot_prefix(episode.options.instruction)
  start = meta["config"].get("pretrained")
  return Tried(
    f"{pathlib.Path(workdir)}, step {step}",
    lambda: one_camera(Policy.from_checkpoint(workdir, _SOURCE.value, step)),
    config_hash=config_hash(meta["config"]),
    web=web_accuracy(workdir, step),
    web_before=web_accuracy(start) if isinstance(start, str) else {},
  )


def one_camera(policy):
  """Plans and first actions of B robots, from their images and instructions."""
  from rt2_jax.observation import PRIMARY, Observation

  def plan_and_act(images, instructions):
    seen = [
      Observation({PRIMARY: image[None]}, text)
      for image, text in zip(images, instructions, strict=True)
    ]
    plans, chunks = policy.plan_and_act(seen)
    return plans, chunks[:, 0]

  return plan_and_act


def web_accuracy(workdir: str, step: int | None = None) -> dict[str, float]:
  """What launch/evaluate.py measured of a run on web sources.

  Args:
    workdir: of the run; one that was never evaluated has no accuracies.
    step: of the checkpoint that was measured; None for any.
  """
  measured = {
    path.stem: json.loads(path.read_text())
    for path in sorted(pathlib.Path(workdir, "evaluation").glob("*.json"))
  }
  return {
    name: metrics["accuracy"]
    for name, metrics in measured.items()
    if step in (None, metrics.get("step")) and "accuracy" in metrics
  }


def play(
  name: str,
  tried: Tried,
  episodes: list[trials.Episode],
  config: TabletopConfig,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Runs all episodes, writes their films and returns their numbers."""
  start = time.monotonic()
  ended = runner.run(
    tried.load and tried.load(),
    episodes,
    functools.partial(simulation.make_tabletop, _PICTURES.value, config),
    _NUM_ENVS.value,
    _NUM_PROCESSES.value,
    _FILMS.value,
    tried.expert,
  )
  done: dict[str, list[runner.Rollout]] = {e.suite: [] for e in episodes}
  successes = 0
  bar = tqdm(ended, name, len(episodes), unit=" episodes")
  for i, one in enumerate(bar, 1):
    done[one.episode.suite].append(one)
    successes += one.outcome == SUCCESS
    bar.set_postfix_str(f"success {successes / i:.0%}", refresh=False)
    if one.images:
      one.film = f"films/{name}/{one.episode.suite}_{one.episode.number}.gif"
      films.write_gif(one.images, folder / one.film)
      one.images = []
  numbers = {suite: runner.summarize(r) for suite, r in done.items()}
  for suite, cell in numbers.items():
    print_line(suite, cell)
  return {
    "seconds": round(time.monotonic() - start, 1),
    "web": tried.web,
    "web_before": tried.web_before,
    "suites": numbers,
  }


def write(result: dict[str, Any], path: pathlib.Path) -> None:
  local_files.write(path, json.dumps(result, allow_nan=False) + "\n")
  print(f"numbers: {path}")


def print_line(suite: str, cell: dict) -> None:
  low, high = cell["interval"]
  outcomes = ", ".join(
    f"{count} {outcome}"
    for outcome, count in cell["outcomes"].items()
    if count and outcome != SUCCESS
  )
  print(
    f"{suite:<22}{cell['rate']:>6.1%}  [{low:.1%}, {high:.1%}]  "
    f"n={cell['n']}  {outcomes}"
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  app.run(main)

"""Tries policies on the simulated tabletop: suites, numbers, films, one page.

  python launch/rollout.py --workdir=runs/a,runs/b --output=runs/rollouts
  python launch/rollout.py --policy=null,random,guess,oracle \\
    --output=runs/rollouts

Every policy meets the same episodes. OUTPUT gets `{policy}.json` for each, and
`report.html`, `success.svg` and `summary.md` about all that are in the folder,
also from earlier calls; a run is called after its folder. Suites are rows of
rt2_jax/evaluators/suites.py.

Baselines: `null` rests, `random` moves at random, `guess` is the scripted
expert who takes anything for the thing that a suite is about (chance for who
moves well and knows all else), `oracle` the expert itself.
"""

import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import absl.logging
from absl import app, flags
from tqdm import tqdm

from rt2_jax.actions import TABLETOP
from rt2_jax.envs import pictures
from rt2_jax.envs.tabletop import SUCCESS, TabletopConfig
from rt2_jax.errors import UserError, ends_in_one_message, unknown_name
from rt2_jax.evaluators import (
  films,
  report,
  rollout,
  simulation,
  suites,
  summary,
  trials,
)

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
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.")
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
    act: None for the scripted expert.
    expert: which task the expert takes an episode for.
    config_hash: of a run's config; "" for a baseline.
    web: accuracy on each web source, where it was measured.
    web_before: likewise, of the run that training started from.
  """

  what: str
  act: rollout.Policy | None
  expert: Callable = rollout.asked
  config_hash: str = ""
  web: dict[str, float] = {}  # noqa: RUF012
  web_before: dict[str, float] = {}  # noqa: RUF012


_BASELINES = {
  "null": Tried("rests with an open hand", rollout.null),
  "random": Tried("moves at random", rollout.random),
  "guess": Tried(
    "the expert, who guesses the described thing", None, rollout.guessed
  ),
  "oracle": Tried("the scripted expert", None),
}


@ends_in_one_message
def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"got {argv[1:]}, expected flags only")
  absl.logging.set_verbosity(absl.logging.WARNING)
  runs = check_names()
  known = pictures.load(_PICTURES.value).only(_CONCEPTS.value)
  chosen = suites.only(suites.choose(_SUITES.value), _FAMILIES.value)
  episodes = trials.draw(chosen, known, _EPISODES.value, _SEED.value)
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  try:
    for name, workdir in runs.items():
      evaluate(name, load(workdir, episodes), episodes, folder)
    for name in _POLICY.value:
      evaluate(name, _BASELINES[name], episodes, folder)
  except RuntimeError as error:  # nothing to draw with
    sys.exit(str(error))
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
    from rt2_jax.checkpoint import Checkpoints

    for _, path in runs:
      Checkpoints.open_run(path).close()
  return dict(runs)


def load(workdir: str, episodes: list[trials.Episode]) -> Tried:
  """The policy of a run.

  Raises:
    UserError: no checkpoint there, one for another robot, or instructions
      that are longer than its prompt.
  """
  from rt2_jax.checkpoint import Checkpoints
  from rt2_jax.policy import Policy
  from rt2_jax.train_config import config_hash

  policy = Policy.from_checkpoint(workdir, _SOURCE.value, _STEP.value)
  if policy.action_space.names != TABLETOP.names or policy.model.num_frames > 1:
    raise UserError(
      f"got {workdir}, which acts with {policy.action_space.names} on "
      f"{policy.model.num_frames} image(s), expected {TABLETOP.names} on one; "
      "pass the run of a model that was trained on the tabletop"
    )
  instructions = [episode.options.instruction for episode in episodes]
  policy.prompt.robot_prefixes(instructions)  # before the first episode
  checkpoints = Checkpoints.open_run(workdir)
  meta, _ = checkpoints.restore_meta(_STEP.value)
  step = _STEP.value or checkpoints.latest_step()
  checkpoints.close()
  start = meta["config"].get("pretrained")
  return Tried(
    f"{workdir}, step {step}",
    policy.plan_and_act,
    config_hash=config_hash(meta["config"]),
    web=web_accuracy(workdir, step),
    web_before=web_accuracy(start) if isinstance(start, str) else {},
  )


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


def evaluate(
  name: str,
  tried: Tried,
  episodes: list[trials.Episode],
  folder: pathlib.Path,
) -> None:
  """Runs all episodes; writes films and numbers."""
  start = time.monotonic()
  config = TabletopConfig(
    image_size=_IMAGE_SIZE.value, max_steps=_MAX_STEPS.value
  )
  ended = rollout.run(
    tried.act,
    episodes,
    functools.partial(simulation.make_tabletop, _PICTURES.value, config),
    _NUM_ENVS.value,
    _NUM_PROCESSES.value,
    _FILMS.value,
    tried.expert,
  )
  done: dict[str, list[rollout.Rollout]] = {e.suite: [] for e in episodes}
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
  numbers = {suite: rollout.summarize(r) for suite, r in done.items()}
  for suite, cell in numbers.items():
    print_line(suite, cell)
  settings = {"image_size": config.image_size, "max_steps": config.max_steps}
  result = {
    "policy": name,
    "what": tried.what,
    "command": " ".join(["python", *sys.argv]),
    "config_hash": tried.config_hash,
    "seed": _SEED.value,
    "episodes_per_suite": _EPISODES.value,
    "episodes_hash": trials.fingerprint(episodes, **settings),
    **settings,
    "seconds": round(time.monotonic() - start, 1),
    "web": tried.web,
    "web_before": tried.web_before,
    "suites": numbers,
  }
  path = folder / f"{name}.json"
  path.write_text(json.dumps(result) + "\n")
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

"""How often a policy does what it is asked to, in simulation.

Many environments are stepped in parallel, with one call of the policy a step.
A policy is anything that takes images uint8[B, S, S, 3] and B instructions and
gives B plans in words, "" where it acts without, and actions float32[B, 8] in
the units of `actions.TABLETOP`, such as `Policy.plan_and_act`.

Shapes: B environments, S x S pixels.
"""

from __future__ import annotations

import collections
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from rt2_jax.actions import TABLETOP
from rt2_jax.envs.tabletop import environment
from rt2_jax.envs.tabletop.instructions import Task
from rt2_jax.errors import UserError
from rt2_jax.rollouts.simulation import (
  Act,
  Begin,
  Broken,
  Lost,
  Seen,
  Simulations,
  has_ended,
)
from rt2_jax.rollouts.trials import Episode

BROKEN_OFF = "broken off"  # the environment threw or died
OUTCOMES = (
  environment.SUCCESS,
  environment.WRONG_OBJECT,
  environment.WRONG_PLACE,
  environment.FAILED,
  environment.NOTHING,
  BROKEN_OFF,
)

Decision = tuple[Sequence[str], np.ndarray]  # plans, actions
Policy = Callable[[np.ndarray, Sequence[str]], Decision]


def null(images: np.ndarray, instructions: Sequence[str]) -> Decision:
  """The floor: rests with an open hand and never ends an episode."""
  actions = np.zeros((len(images), len(TABLETOP)), np.float32)
  actions[:, -1] = 1.0
  return [""] * len(images), actions


def random(images: np.ndarray, instructions: Sequence[str]) -> Decision:
  """Any motion; ends one step in thirty. The same picture, the same motion."""
  low = np.array([d.low for d in TABLETOP.dimensions])
  high = np.array([d.high for d in TABLETOP.dimensions])
  actions = []
  for image in images:
    rng = np.random.default_rng(zlib.crc32(image.tobytes()))
    actions.append(rng.uniform(low, high))
    actions[-1][0] = rng.random() < 1 / 30
  return [""] * len(images), np.array(actions, np.float32)


def asked(episode: Episode) -> Task:
  """What the scripted expert should do: the ceiling."""
  return episode.options.task


def guessed(episode: Episode) -> Task:
  """What one would do who moves well and knows all but the described thing."""
  task, others = episode.options.task, episode.options.distractors
  rng = np.random.default_rng(episode.seed)
  blocks, mats = environment.lay(task, others)
  known = {task.target, task.reference} - {getattr(task, episode.described)}
  choices = mats if mats and episode.described == "reference" else blocks
  choice = rng.choice([name for name in choices if name not in known])
  return dataclasses.replace(task, **{episode.described: str(choice)})


@dataclasses.dataclass
class Rollout:
  """What became of an episode.

  Attributes:
    episode: which.
    outcome: one of `OUTCOMES`.
    steps: how many.
    capped: the policy did not end it; the step cap did.
    engaged: name of what the robot acted on first, or "".
    plan: what the policy wrote before its first action, or "".
    error: what broke it off, or "".
    images: of every step, uint8[S, S, 3]; empty unless asked for.
    film: path of a file with the images, or "".
  """

  episode: Episode
  outcome: str = BROKEN_OFF
  steps: int = 0
  capped: bool = False
  engaged: str = ""
  plan: str = ""
  error: str = ""
  images: list[np.ndarray] = dataclasses.field(default_factory=list)
  film: str = ""

  def to_dict(self) -> dict[str, Any]:
    """All but the images, for a file."""
    options = self.episode.options
    return {
      "number": self.episode.number,
      "seed": self.episode.seed,
      "instruction": options.instruction,
      **dataclasses.asdict(options.task),
      "outcome": self.outcome,
      "steps": self.steps,
      "capped": self.capped,
      "engaged": self.engaged,
      "plan": self.plan,
      "error": self.error,
      "film": self.film,
    }


def run(
  policy: Policy | None,
  episodes: Sequence[Episode],
  make: Callable[[], environment.TabletopEnv],
  num_envs: int,
  num_processes: int | None = None,
  num_filmed: int = 0,
  expert: Callable[[Episode], Task] = asked,
) -> Iterator[Rollout]:
  """Tries a policy on episodes, and yields each as it ends.

  The policy is always called with `num_envs` rows, so that it is compiled once;
  rows that are not needed repeat another.

  Args:
    policy: what to try; None for the scripted expert.
    episodes: what to try it on.
    make: makes an environment, in another process: `simulation.make_tabletop`
      with its arguments.
    num_envs: how many are stepped at once.
    num_processes: that step them; default: one for each CPU.
    num_filmed: of each suite, the first so many episodes keep their images.
    expert: which task the scripted expert takes an episode for.

  Raises:
    UserError: the policy gives actions of another shape, or the
      environments cannot be made.
  """
  waiting = collections.deque(episodes)
  running: dict[int, Rollout] = {}
  seen: dict[int, np.ndarray] = {}
  num_envs = min(num_envs, len(episodes))
  with Simulations(make, num_envs, num_processes) as simulations:
    while waiting or running:
      requests = _decide(policy, running, seen, num_envs)
      for slot in range(num_envs):
        if slot not in running and waiting:
          running[slot] = Rollout(waiting.popleft())
        if slot in running and slot not in seen:
          episode = running[slot].episode
          requests[slot] = Begin(episode, expert(episode))
      for slot, reply in simulations.exchange(requests).items():
        if isinstance(reply, Lost):  # from its first picture again
          seen.pop(slot, None)
          running[slot].images.clear()
          continue
        if isinstance(reply, Seen):
          seen[slot] = reply.image
          if running[slot].episode.number < num_filmed:
            running[slot].images.append(reply.image)
        if has_ended(reply):
          seen.pop(slot, None)
          yield _end(running.pop(slot), reply)


def _end(rollout: Rollout, reply: Seen | Broken) -> Rollout:
  """Fills in what became of it."""
  if isinstance(reply, Broken):
    rollout.error = reply.error
    return rollout
  rollout.outcome = reply.info["outcome"]
  rollout.steps = reply.info["steps"]
  rollout.engaged = reply.info["engaged"]
  rollout.capped = reply.truncated
  return rollout


def _decide(
  policy: Policy | None,
  running: dict[int, Rollout],
  seen: dict[int, np.ndarray],
  num_envs: int,
) -> dict[int, Act]:
  """The next actions of the environments whose picture is there."""
  if policy is None or not seen:
    return {slot: Act(None) for slot in seen}
  slots = list(seen)
  rows = slots + slots[:1] * (num_envs - len(slots))
  instructions = [running[s].episode.options.instruction for s in rows]
  plans, actions = policy(np.stack([seen[s] for s in rows]), instructions)
  if actions.shape != (num_envs, len(TABLETOP)):
    raise UserError(
      f"got actions {list(actions.shape)} from the policy, expected "
      f"{[num_envs, len(TABLETOP)]}: {', '.join(TABLETOP.names)}"
    )
  for slot, plan in zip(slots, plans, strict=False):
    running[slot].plan = running[slot].plan or plan
  return {slot: Act(actions[i]) for i, slot in enumerate(slots)}


def summarize(rollouts: Sequence[Rollout]) -> dict[str, Any]:
  """One suite's numbers: n, successes, rate, interval, outcomes, episodes."""
  rollouts = sorted(rollouts, key=lambda r: r.episode.number)
  counts = collections.Counter(r.outcome for r in rollouts)
  successes, n = counts[environment.SUCCESS], len(rollouts)
  return {
    "n": n,
    "successes": successes,
    "rate": successes / n,
    "interval": wilson(successes, n),
    "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
    "capped": sum(r.capped for r in rollouts),
    "mean_steps": float(np.mean([r.steps for r in rollouts])),
    "seeds": [r.episode.seed for r in rollouts],
    "episodes": [r.to_dict() for r in rollouts],
  }


def wilson(successes: int, n: int) -> tuple[float, float]:
  """Wilson's 95% interval of a rate."""
  interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
  return float(interval.low), float(interval.high)

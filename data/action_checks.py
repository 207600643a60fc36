"""Checks of actions and states.

Each check takes a split and yields findings. An error is what training refuses
or learns wrongly from; a warning is what a person should have looked at.

Shapes: T steps of an episode, N of all, D action dimensions, S numbers of a
state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data.derived_description import AS_RECORDED
from data.findings import PLACES, Finding, stretches
from data.recorded_episodes import RecordedSplit
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.input_pipeline import bounds_fit
from rt2_jax.input_pipeline.episodes import is_displacement

_IDLE_S = 2.0  # standing still for so long is a pause
_MAX_IDLE = 0.1  # fraction of the steps
_STILL = 0.005  # of a dimension's span: less is no motion
_JUMP = 0.3  # of the span, in one step
_FAR = 10.0  # times what 99% of the steps move
_SATURATED = 0.1  # fraction of the steps at the largest or least value
_FEW = 32  # different values: a switch may well rest at an end
_MAX_LAG = 10  # steps by which a state may follow
_MAX_LAG_S = 0.5
_TREMBLE = 0.01  # of the widest motion in the same unit: a joint at rest
_FOLLOWS = 0.5  # correlation of a state with what commands it


def check_bounds(split: RecordedSplit) -> Iterator[Finding]:
  """Compares the bounds of the action space with what was recorded."""
  action = split.action
  if not len(action):
    return
  fits = bounds_fit.measure(split.config.space, action)
  bad = [
    f'"{fit.name}": {fit.clipped:.1%} clipped, 98% in {fit.bins} of 256 bins; '
    f'"low": {fit.span[0]:.6g}, "high": {fit.span[1]:.6g}'
    for fit in fits
    if not fit.fits
  ]
  if bad:
    yield Finding(
      "bounds that do not fit",
      "Set low and high in robot.json, or the source's bounds, to those below: "
      "the 1st and 99th percentile.",
      is_error=True,
      places=tuple(bad),
    )


def check_dimensions(split: RecordedSplit) -> Iterator[Finding]:
  """Finds dimensions that never change, or rest at one end."""
  action = split.action
  if not len(action):
    return
  dead, cut = [], []
  for i, d in enumerate(split.robot.space.dimensions):
    values, unit = action[:, i], d.unit
    least, most = values.min(), values.max()
    if least == most and d.name != "terminate":
      dead.append(f"{d.name} is {least:.4g} {unit} in every step")
    if d.kind == "discrete" or d.unit == "open" or is_displacement(d):
      continue
    if len(np.unique(values)) > _FEW:
      for end, value in (("least", least), ("largest", most)):
        share = float((values == value).mean())
        if share > _SATURATED:
          cut.append(f"{d.name}: {share:.0%} are its {end}, {value:.4g} {unit}")
  if dead:
    yield Finding(
      "numbers that never change",
      "Take them out of robot.json, unless the robot needs them: each costs a "
      "token in every action.",
      places=tuple(dead),
    )
  if cut:
    yield Finding(
      "numbers that rest at an end",
      "They may have been cut off when they were recorded.",
      places=tuple(cut),
    )


def check_grippers(split: RecordedSplit) -> Iterator[Finding]:
  """Finds numbers that look like a gripper and are described as another."""
  action, told = split.action, []
  for i, d in enumerate(split.robot.space.dimensions):
    if d.kind == "discrete" or d.unit == "open" or not len(action):
      continue
    values = action[:, i]
    least, most = float(values.min()), float(values.max())
    if "grip" in d.name.lower() or is_switch(values):
      told.append(f"{d.name} goes from {least:.4g} to {most:.4g}")
  if told:
    yield Finding(
      "numbers that may be grippers",
      "If they are, replace their unit and bounds in robot.json by "
      '"gripper": {"open": …, "closed": …}.',
      places=tuple(told),
    )


def is_switch(values: np.ndarray) -> bool:
  """Tells whether nearly all of float[N] are one of two values."""
  ends = values.min(), values.max()
  return ends[0] < ends[1] and bool(np.isin(values, ends).mean() > 0.95)


def check_units(split: RecordedSplit) -> Iterator[Finding]:
  """Finds numbers whose unit nobody has written down."""
  unsaid = [
    d.name for d in split.robot.space.dimensions if d.unit == AS_RECORDED
  ]
  if unsaid:
    yield Finding(
      "units are not said",
      f"Those of {', '.join(unsaid)}: write them into robot.json, so that a "
      "person who runs the policy knows what it commands.",
    )


def check_idle(split: RecordedSplit) -> Iterator[Finding]:
  """Finds long stretches in which the robot neither moves nor grips."""
  least = max(2, round(_IDLE_S * (split.robot.rate_hz or 1.0)))
  scale = _spans(split)
  idle, total, longest = 0, 0, []
  for episode in split.episodes:
    still = still_steps(episode.action, split.robot.space, scale)
    total += len(still)
    for first, length in stretches(still):
      if length >= least:
        idle += length
        longest.append(
          (length, f"{episode.name}, step {first}: {length} steps")
        )
  if idle > _MAX_IDLE * total:
    longest.sort(reverse=True)
    yield Finding(
      "the robot stands still",
      f"{idle:,} of {total:,} steps ({idle / total:.0%}) lie in pauses of at "
      f"least {least} steps. A policy learns to pause, too: cut them out, or "
      "set filters.drop_noops where actions are motions.",
      places=tuple(place for _, place in longest[:PLACES]),
    )


def still_steps(
  action: np.ndarray, space: ActionSpace, scale: np.ndarray
) -> np.ndarray:
  """Tells in which steps nothing happens, bool[T].

  A motion is nothing where it is near zero; anything else, where it is as in
  the step before.

  Args:
    action: float32[T, D].
    space: what the numbers mean.
    scale: what each spans in the data set, float[D].
  """
  moves = np.array([is_displacement(d) for d in space.dimensions])
  before = np.concatenate([action[:1], action[:-1]])
  change = np.where(moves, np.abs(action), np.abs(action - before))
  return (change <= _STILL * scale).all(-1)


def check_jumps(split: RecordedSplit) -> Iterator[Finding]:
  """Finds single steps that move much further than all others."""
  space, scale = split.robot.space, _spans(split)
  for i, d in enumerate(space.dimensions):
    if d.kind == "discrete" or d.unit == "open":
      continue
    if not len(split.action) or is_switch(split.action[:, i]):
      continue
    motions = [_motion(e.action[:, i], d) for e in split.episodes]
    sizes = np.concatenate([[0.0], *motions])
    usual = np.quantile(sizes, 0.99)
    limit = max(_FAR * usual, _JUMP * scale[i])
    places = [
      f"{episode.name}, step {t}: {motion[t]:.4g} {d.unit}"
      for episode, motion in zip(split.episodes, motions, strict=True)
      for t in np.flatnonzero(motion > limit)
    ]
    if places:
      yield Finding(
        f"{d.name} jumps",
        f"{len(places):,} steps move by more than {limit:.4g} {d.unit}, where "
        f"99% move by at most {usual:.4g}; a sensor or a time stamp is wrong "
        "there.",
        places=tuple(places[:PLACES]),
      )


def _motion(values: np.ndarray, d: Dimension) -> np.ndarray:
  """Measures how far each step moves, float[T]."""
  if is_displacement(d):
    return np.abs(values)
  return np.abs(np.diff(values, prepend=values[:1]))


def check_following(split: RecordedSplit) -> Iterator[Finding]:
  """Finds states that do not follow the actions that command them.

  An action "x" is compared with the state "x"; a motion "dx" with what the
  state "x" moved by. Where a joint only trembles, that is no error: its state
  is the sensor's noise.
  """
  if not len(split.action):
    return
  names = split.robot.space.names
  trembles = trembling(split)
  for d, lag, fit, slope in following(split):
    column = names.index(d.name)
    if fit < _FOLLOWS:
      yield Finding(
        f"the state does not follow {d.name}",
        f"The best correlation is {fit:.2f}: the two may be in other frames, "
        "units or signs, or the columns in another order.",
        is_error=fit < 0.1 and not trembles[column],
      )
      continue
    seconds = lag / (split.robot.rate_hz or 1.0)
    if seconds > _MAX_LAG_S:
      yield Finding(
        f"the state follows {d.name} late",
        f"By {lag} steps ({seconds:.2f} s): actions and observations may have "
        "been recorded at different times.",
      )
    if not 0.5 < slope < 2.0 and not is_switch(split.action[:, column]):
      yield Finding(
        f"the state moves {slope:.2g} times as far as {d.name}",
        "Their units differ, or the motion is scaled: correct scale in "
        "robot.json.",
      )


def trembling(split: RecordedSplit) -> np.ndarray:
  """Tells which dimensions hardly move beside others in their unit, bool[D]."""
  units = np.array([d.unit for d in split.robot.space.dimensions])
  moves = split.action.std(0)
  widest = [moves[units == unit].max() for unit in units]
  return moves < _TREMBLE * np.array(widest)


def following(
  split: RecordedSplit,
) -> Iterator[tuple[Dimension, int, float, float]]:
  """Yields (dimension, lag in steps, correlation, slope) of each pair."""
  if split.robot.state is None:
    return
  names = split.robot.state.space.names
  for i, d in enumerate(split.robot.space.dimensions):
    is_motion = is_displacement(d)
    name = _of_motion(d.name) if is_motion else d.name
    if name not in names or d.kind == "discrete":
      continue
    pairs = [
      (e.action[:, i], e.state[:, names.index(name)]) for e in split.episodes
    ]
    best = max(
      (
        (*_agreement(pairs, lag, is_motion), lag)
        for lag in range(1 if is_motion else 0, _MAX_LAG + 1)
      ),
      key=lambda found: found[0],
    )
    fit, slope, lag = best
    if np.isfinite(fit):
      yield d, lag, fit, slope


def _of_motion(name: str) -> str:
  """Turns `"left_dx"` into `"left_x"`, `"delta_elbow"` into `"elbow"`."""
  if "delta_" in name:
    return name.replace("delta_", "", 1)
  arm, _, axis = name.rpartition("_")
  return f"{arm}_{axis[1:]}".lstrip("_")


def _agreement(
  pairs: Sequence[tuple[np.ndarray, np.ndarray]], lag: int, is_motion: bool
) -> tuple[float, float]:
  """Correlates states with actions `lag` steps before; gives the slope, too."""
  actions, states = [], []
  for action, state in pairs:
    if len(action) <= lag + 1:
      continue
    moved = np.diff(state, prepend=state[:1]) if is_motion else state
    actions.append(action[: len(action) - lag])
    states.append(moved[lag:])
  if not actions:
    return -np.inf, 1.0
  a, s = (np.concatenate(x).astype(np.float64) for x in (actions, states))
  if a.std() < 1e-9 or s.std() < 1e-9:
    return -np.inf, 1.0
  fit = float(np.corrcoef(a, s)[0, 1])
  return fit, fit * float(s.std() / a.std())


def _spans(split: RecordedSplit) -> np.ndarray:
  """Measures each dimension from the 1st to the 99th percentile, float[D]."""
  action = split.action
  if not len(action):
    return np.zeros(len(split.robot.space))
  q01, q99 = np.quantile(action.astype(np.float64), [0.01, 0.99], axis=0)
  return np.maximum(q99 - q01, 1e-6)

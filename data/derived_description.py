"""robot.json as an importer derives it from what was recorded.

Shapes: N steps, n numbers of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.compute_stats import suggested_bounds
from data.recordings import Column, Layout
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.input_pipeline import description

AS_RECORDED = "as recorded"  # the unit of numbers whose unit nobody states
_NAMED = 5  # numbers that a piece of advice lists
_BEYOND = 0.1  # of a gripper's range that recordings may go beyond it


def state_units(
  layout: Layout, unit: str, units: Sequence[str], grippers: Sequence[str]
) -> Layout:
  """Adds to the columns what flags say of them.

  Args:
    layout: of the data set.
    unit: of all numbers whose unit the format does not state; "" for none.
    units: `NAME=UNIT` or `NAME=UNIT*SCALE` of single numbers.
    grippers: `NAME=OPEN:CLOSED`, the numbers of an open and a closed gripper.
      `action.NAME` and `state.NAME` tell two numbers of one name apart.

  Raises:
    UserError: no such number, or a flag of another form.
  """
  changes: dict[str, dict[str, Any]] = {}
  for text in units:
    name, _, value = text.partition("=")
    name_of_unit, _, scale = value.partition("*")
    if not name_of_unit:
      raise UserError(
        f"got --units={text!r}, expected e.g. elbow=rad*0.0174533; repeat the "
        "flag for each number"
      )
    changes[name] = {"unit": name_of_unit, "scale": _number(text, scale or "1")}
  for text in grippers:
    name, _, value = text.partition("=")
    ends = value.split(":")
    if len(ends) != 2:
      raise UserError(
        f"got --gripper={text!r}, expected e.g. gripper=100:0; repeat the flag "
        "for each gripper"
      )
    opened, closed = (_number(text, end) for end in ends)
    changes[name] = {"gripper": (opened, closed)}
  features = {"action": layout.action, "state": layout.state}
  names = [c.name for columns in features.values() for c in columns]
  names += [f"{f}.{c.name}" for f, columns in features.items() for c in columns]
  for name in changes:
    if name not in names:
      raise unknown_name("a number of the action or state", name, names)

  def changed(feature: str, column: Column) -> Column:
    found = {} if column.unit or column.gripper else {"unit": unit}
    for name in (column.name, f"{feature}.{column.name}"):
      found |= changes.get(name, {})
    return dataclasses.replace(column, **found)

  return dataclasses.replace(
    layout,
    **{f: tuple(changed(f, c) for c in cs) for f, cs in features.items()},
  )


def _number(text: str, value: str) -> float:
  try:
    return float(value)
  except ValueError as error:
    raise UserError(f"got {value!r} in {text!r}, expected a number") from error


class Numbers(NamedTuple):
  """Actions float32[N, A] and states float32[N, S]."""

  action: np.ndarray
  state: np.ndarray


def derive(
  layout: Layout, name: str, train: Numbers, recorded: Numbers
) -> dict[str, Any]:
  """Describes records of that layout.

  Bounds are the 1st and 99th percentile of the training split. The ends of a
  gripper are moved to what was recorded where that goes a little beyond: no
  split may hold a number beyond them.

  Args:
    layout: of the data set.
    name: of the robot's action space.
    train: of the training split.
    recorded: of all splits.

  Returns:
    The fields of a robot.json.

  Raises:
    UserError: a gripper whose numbers lie far from its ends.
  """
  described: dict[str, Any] = {
    "name": name,
    "rate_hz": layout.rate_hz,
    "cameras": {camera: f"observation/{camera}" for camera in layout.cameras},
    "instruction": "language_instruction",
    "action": [
      _describe(c, "action", i, train.action[:, i], recorded.action[:, i])
      for i, c in enumerate(layout.action)
    ],
    "terminate": {"feature": "is_last"},
  }
  if layout.state:
    described["state"] = [
      _describe(
        c, "observation/state", i, train.state[:, i], recorded.state[:, i]
      )
      for i, c in enumerate(layout.state)
    ]
  return described


def advice(layout: Layout, folder: Path) -> Iterator[str]:
  """Names what could not be derived, and where to say it."""
  unsaid = [c.name for c in layout.action if not c.unit and not c.gripper]
  if unsaid:
    more = " …" if len(unsaid) > _NAMED else ""
    yield (
      f"the unit of {', '.join(unsaid[:_NAMED])}{more} is not known: write it "
      f"into {folder / description.FILE}"
    )
  for column in layout.action:
    if "gripper" in column.name and not column.gripper:
      yield (
        f"{column.name} is treated as any number; if it is a gripper, say so "
        f"in {description.FILE}, or import with --gripper={column.name}="
        "OPEN:CLOSED"
      )


def _describe(
  column: Column,
  feature: str,
  position: int,
  train: np.ndarray,
  recorded: np.ndarray,
) -> Mapping[str, Any]:
  place = {"name": column.name, "feature": feature, "column": position}
  if column.gripper:
    opened, closed = _ends(column, recorded)
    return place | {"gripper": {"open": opened, "closed": closed}}
  scale = {} if column.scale == 1 else {"scale": column.scale}
  q01, q99 = np.quantile(column.scale * train.astype(np.float64), [0.01, 0.99])
  low, high = suggested_bounds(q01, q99)
  bounds = {"low": low, "high": high}
  return place | {"unit": column.unit or AS_RECORDED} | scale | bounds


def _ends(column: Column, values: np.ndarray) -> tuple[float, float]:
  """Moves the ends of a gripper so that all values lie within.

  Raises:
    UserError: values far beyond them.
  """
  opened, closed = column.gripper
  least, most = float(values.min()), float(values.max())
  low, high = sorted((opened, closed))
  room = _BEYOND * (high - low)
  if least < low - room or most > high + room:
    raise UserError(
      f"got {least:g} to {most:g} for gripper {column.name!r}, expected "
      f"numbers between open = {opened:g} and closed = {closed:g}; correct "
      f"--gripper={column.name}=OPEN:CLOSED, or name action.{column.name} or "
      f"state.{column.name} if only one of them is a gripper"
    )
  # Not rounded: what lies beyond an end is refused.
  low, high = min(low, least), max(high, most)
  return (high, low) if opened > closed else (low, high)

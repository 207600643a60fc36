"""Ranges of numeric fields, written beside them and checked in one place.

    num_threads: Annotated[int, at_least(1)] = 2

`check` reads these annotations of a dataclass or a function.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from rt2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
  """Finite numbers that a field may hold.

  Attributes:
    low: the smallest.
    high: the largest.
    without_low: `low` itself is left out.
    without_high: `high` itself is left out.
  """

  low: float
  high: float = math.inf
  without_low: bool = False
  without_high: bool = False

  def holds(self, value: float) -> bool:
    """Tells whether a number is finite and inside the range."""
    above = value > self.low if self.without_low else value >= self.low
    below = value < self.high if self.without_high else value <= self.high
    return math.isfinite(value) and above and below

  def __str__(self) -> str:
    low = f"{'more than' if self.without_low else 'at least'} {self.low}"
    if self.high == math.inf:
      return low
    high = f"{'less than' if self.without_high else 'at most'} {self.high}"
    return f"{low} and {high}"


def at_least(low: float) -> Range:
  return Range(low)


def more_than(low: float) -> Range:
  return Range(low, without_low=True)


def between(low: float, high: float) -> Range:
  """Both ends belong to the range."""
  return Range(low, high)


def below(high: float) -> Range:
  """From 0, which belongs to the range, to `high`, which does not."""
  return Range(0, high, without_high=True)


def check(build: Callable, prefix: str, fields: Mapping[str, Any]):
  """Compares numeric fields with their annotated types and ranges.

  Args:
    build: a dataclass or function whose parameters are annotated.
    prefix: of a field's name, e.g. "config.loader.".
    fields: values of its parameters.

  Raises:
    UserError: the first value of another type or outside its range.
  """
  hints = typing.get_type_hints(build, include_extras=True)
  for name, value in fields.items():
    if typing.get_origin(hints.get(name)) is not Annotated:
      continue
    kind, allowed = typing.get_args(hints[name])
    if value is None and type(None) in typing.get_args(kind):
      continue
    kind = (*typing.get_args(kind), kind)[0]
    number = numbers.Integral if kind is int else numbers.Real
    is_number = isinstance(value, number) and not isinstance(value, bool)
    if not is_number or not allowed.holds(value):
      noun = "whole number" if kind is int else "finite number"
      raise UserError(
        f"got {prefix}{name} = {value!r}, expected {allowed} (a {noun})"
      )

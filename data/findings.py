"""Findings: what a person should know about a robot's recordings."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

PLACES = 5  # that a finding names


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that a person should know.

  Attributes:
    title: in a few words.
    text: with figures, and what to change.
    is_error: whether training refuses it, or learns what is wrong.
    places: of the first few cases.
  """

  title: str
  text: str
  is_error: bool = False
  places: tuple[str, ...] = ()


def stretches(flags: np.ndarray) -> list[tuple[int, int]]:
  """Finds every run of True in bool[T]: (first, length)."""
  found, first = [], 0
  for value, run in itertools.groupby(flags.tolist()):
    length = len(list(run))
    if value:
      found.append((first, length))
    first += length
  return found

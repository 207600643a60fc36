"""Words for things other than their names."""

import numpy as np
import pytest

from rt2_jax.envs.tabletop import pictures
from rt2_jax.envs.tabletop.descriptions import (
  DESCRIBERS,
  NUMBERS,
  alike,
  sum_of,
)
from tests.envs.tabletop.rendering import PICTURES

KNOWN = pictures.load(PICTURES)


@pytest.mark.parametrize(
  ("way", "name", "text", "fits", "others"),
  [
    ("name", "dog", "the dog", "dog", "cat"),
    ("kind", "dog", "the animal", "bee", "house"),  # a bee is an animal too
    ("use", "dog", "the one that barks", "dog", "cat"),
    ("colour", "frog", "the green thing", "cactus", "crab"),
    ("colour", "frog", "the green thing", "dog", "crab"),  # who knows
    ("de", "apple", "the Apfel", "apple", "green apple"),
    (
      *("capital", "flag of France"),
      *("the flag of the country with Paris", "flag of France"),
      "flag of Spain",
    ),
  ],
)
def test_ways_to_describe(way, name, text, fits, others):
  assert DESCRIBERS[way].can(KNOWN[name])
  words = DESCRIBERS[way].describe(KNOWN[name], np.random.default_rng(0))
  assert words.text == text
  assert not words.excludes(KNOWN[fits])
  assert words.excludes(KNOWN[others])


def test_not_every_thing_can_be_described_in_every_way():
  assert not DESCRIBERS["sum"].can(KNOWN["dog"])
  assert not DESCRIBERS["capital"].can(KNOWN["dog"])
  assert DESCRIBERS["sum"].can(KNOWN["number 7"])


def test_kinds_that_one_thing_could_be_called_by():
  assert alike("fruit", "food") and alike("bird", "bird")
  assert not alike("fruit", "animal")


@pytest.mark.parametrize("value", range(11))
def test_sums(value):
  rng = np.random.default_rng(value)
  for _ in range(20):
    first, sign, second = sum_of(value, rng).split()
    sign = {"plus": 1, "minus": -1}[sign]
    assert NUMBERS.index(first) + sign * NUMBERS.index(second) == value

"""The order of data: exact shares, exact epochs, the same on any hosts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rt2_jax.input_pipeline.mixture import Mixture, uniform


def epoch_of(size, seed, epoch):
  """The order in which a source is walked through."""
  mixture = Mixture((size,), (1.0,), seed)
  return mixture.draw(epoch, np.arange(size), size).example


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 2**40))
@settings(max_examples=50)
def test_an_epoch_is_a_permutation(size, seed, epoch):
  out = epoch_of(size, seed, epoch)
  np.testing.assert_array_equal(np.sort(out), np.arange(size))


def test_permutations_look_random():
  size, epochs = 1000, 200
  table = np.stack([epoch_of(size, 0, epoch) for epoch in range(epochs)])
  # Every element is about as often in the first tenth as chance has it.
  early = (table[:, :100] < 500).mean()
  assert abs(early - 0.5) < 0.02
  repeats = (table[1:] == table[:-1]).mean()
  assert repeats < 3 / size
  neighbours = (np.abs(np.diff(table, axis=1)) == 1).mean()
  assert neighbours < 4 / size


def test_uniform_numbers_of_steps_and_epochs():
  step, epoch = (x.ravel() for x in np.mgrid[:1000, :100])
  drawn = uniform(step, epoch)
  assert drawn.min() >= 0 and drawn.max() < 1
  np.testing.assert_array_equal(uniform(step[7:9], epoch[7:9]), drawn[7:9])
  counts = np.histogram(drawn, 10, (0, 1))[0]
  assert ((counts - 1e4) ** 2 / 1e4).sum() < 21.7  # chi-square, 9 df: 1%
  table = drawn.reshape(1000, 100)
  for a, b in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


def draw_all(mixture, steps, batch_size):
  rows = np.arange(batch_size)
  drawn = [mixture.draw(step, rows, batch_size) for step in range(steps)]
  source, index, _ = zip(*drawn, strict=True)
  return np.concatenate(source), np.concatenate(index)


@given(
  st.lists(
    st.tuples(st.integers(1, 40), st.floats(0.05, 10)), min_size=1, max_size=4
  ),
  st.integers(0, 2**32),
)
@settings(max_examples=50)
def test_each_source_is_visited_once_per_epoch(sources, seed):
  sizes, weights = zip(*sources, strict=True)
  mixture = Mixture(sizes, weights, seed)
  source, index = draw_all(mixture, steps=20, batch_size=16)
  for s, size in enumerate(sizes):
    visits = index[source == s]
    for start in range(0, len(visits) - size + 1, size):
      epoch = np.sort(visits[start : start + size])
      np.testing.assert_array_equal(epoch, np.arange(size))


@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=5))
def test_shares_hold_in_every_stretch(weights):
  mixture = Mixture((7,) * len(weights), tuple(weights), seed=1)
  source, _ = draw_all(mixture, steps=25, batch_size=16)
  for s, weight in enumerate(weights):
    expected = weight / sum(weights) * np.arange(1, len(source) + 1)
    realized = np.cumsum(source == s)
    assert np.abs(realized - expected).max() <= len(weights) + 0.1


def test_chi_square_of_100_000_draws():
  weights = (0.66, 0.2, 0.1, 0.04)
  mixture = Mixture((977, 31, 5, 1), weights, seed=3)
  source, _ = draw_all(mixture, steps=100, batch_size=1000)
  expected = np.array(weights) * len(source)
  chi_square = ((np.bincount(source) - expected) ** 2 / expected).sum()
  # 3 degrees of freedom; a random draw exceeds 7.8 once in twenty times.
  assert chi_square < 0.01


def test_epochs_differ_and_seeds_differ():
  mixture = Mixture((50,), (1.0,), seed=0)
  _, index = draw_all(mixture, steps=2, batch_size=50)
  other = Mixture((50,), (1.0,), seed=1).draw(0, np.arange(50), 50).example
  assert (index[:50] != index[50:]).any() and (index[:50] != other).any()


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 10**7))
def test_hosts_divide_the_same_global_batch(hosts, step):
  mixture = Mixture((101, 13), (2.0, 1.0), seed=5)
  whole = mixture.draw(step, np.arange(24), 24)
  parts = [
    mixture.draw(step, np.arange(24)[h * 24 // hosts :][: 24 // hosts], 24)
    for h in range(hosts)
  ]
  for i in range(3):
    np.testing.assert_array_equal(
      np.concatenate([part[i] for part in parts]), whole[i]
    )


def test_a_million_steps_of_4096_do_not_overflow():
  mixture = Mixture((3_786_400, 10**9), (1.0, 2.0), seed=0)
  source, index, epoch = mixture.draw(10**6, np.arange(4096), 4096)
  assert (np.bincount(source) >= 4096 // 3 - 2).all()
  assert (index >= 0).all() and index.max() < 10**9
  assert (epoch[source == 0] > 300).all() and (epoch[source == 1] <= 2).all()


@pytest.mark.parametrize(
  ("sizes", "weights", "message"),
  [
    ((3, 3), (1.0, float("nan")), "got weights .*nan.*expected positive"),
    ((3, 3), (float("inf"), 1.0), "got weights .*inf.*expected positive"),
    ((3, 3), (1.0, 1e-7), "a source would never be drawn, expected fractions"),
    ((3, 3, 3), (1.0, 1e-7, 1.0), "a source would never be drawn, expected"),
    ((3,), (1.0, 2.0), "got 1 sources and 2 weights"),
    ((), (), "at least one source"),
    ((3, 4), (1.0, 0.0), "expected positive numbers; remove a source"),
    ((0, 4), (1.0, 1.0), "expected positive numbers"),
  ],
)
def test_sources_that_cannot_be_drawn(sizes, weights, message):
  with pytest.raises(ValueError, match=message):
    Mixture(sizes, weights, 0)

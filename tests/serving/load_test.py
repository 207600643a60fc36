"""A short load: nothing lost or swapped, and a clean end."""

import asyncio

import numpy as np

from tests.serving import load


def test_many_robots_and_some_bad_ones(run):
  answers = load.expected(run)
  assert len(np.unique(answers, axis=0)) > load.IMAGES // 2
  measured = asyncio.run(load.run(run, answers, robots=32, seconds=5))
  assert measured["swapped"] == measured["lost"] == 0, measured
  assert measured["unavailable"] == 0 and measured["errors"] == "", measured
  # On a busy machine, too.
  assert measured["answered"] > 2 * 32, measured
  assert measured["refused"] >= 1 and measured["dropped"] >= 1, measured
  assert measured["exit_code"] == 0, measured
  assert measured["seconds_to_exit"] < 10, measured
  assert measured["rss_growth_mib"] < 32, measured

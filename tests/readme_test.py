"""Figures in README are those of the files that programs wrote."""

import pathlib

import pytest

from rt2_jax.evaluators import summary
from tests.conftest import ROOT

MINI = ROOT / "docs/mini"
MICRO = ROOT / "docs/micro"


@pytest.mark.parametrize(
  ("folder", "pages"),
  [(MINI, ("README.md", "docs/mini.md")), (MICRO, ("docs/mini.md",))],
)
def test_the_tables_of_the_mini_robots_are_the_programs(folder, pages):
  table = (folder / summary.TABLE).read_text()
  assert table == summary.table(summary.read(folder))
  for page in pages:
    assert table in pathlib.Path(ROOT, page).read_text(), page


def test_both_sizes_met_the_same_episodes():
  results = [*summary.read(MINI).values(), *summary.read(MICRO).values()]
  assert len({result["episodes_hash"] for result in results}) == 1


def test_the_figures_of_the_quick_start_are_the_programs():
  (result,) = summary.read(ROOT / "docs/quickstart").values()
  suites = result["suites"]
  symbols = [suites[name] for name in suites if name.startswith("symbols_")]
  figures = (
    "{successes} of {n} seen tasks, ".format(**suites["seen"])
    + "{successes} of {n} with unseen objects, ".format(
      **suites["objects_easy"]
    )
    + "{successes} of {n} with symbols.".format(**summary.pool(symbols))
  )
  assert figures in " ".join((ROOT / "README.md").read_text().split())


def test_the_figures_of_plans_are_the_programs():
  suites = summary.read(MINI)["planning"]["suites"]
  right = sum(
    episode["plan"].partition(" <loc")[0] == episode["target"]
    for name in suites
    if name.startswith("reasoning_")
    for episode in suites[name]["episodes"]
  )
  words = " ".join((ROOT / "README.md").read_text().split())
  assert f"{right} of 500 plans for reasoning named the right thing" in words


@pytest.mark.parametrize("folder", [MINI, MICRO])
def test_every_run_names_its_config(folder):
  for policy, result in summary.read(folder).items():
    if policy not in summary.BASELINES:
      assert len(result["config_hash"]) == 16, policy
      assert result["web"] and result["command"]

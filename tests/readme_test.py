"""Figures in README are those of the files that programs wrote."""

import pathlib

from rt2_jax.evaluators import summary
from tests.conftest import ROOT

MINI = ROOT / "docs/mini"


def test_the_table_of_the_mini_robots_is_the_programs():
  table = (MINI / summary.TABLE).read_text()
  assert table == summary.table(summary.read(MINI))
  for page in ("README.md", "docs/mini.md"):
    assert table in pathlib.Path(ROOT, page).read_text(), page


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


def test_every_run_names_its_config():
  for policy, result in summary.read(MINI).items():
    if policy not in summary.BASELINES:
      assert len(result["config_hash"]) == 16, policy
      assert result["web"] and result["command"]

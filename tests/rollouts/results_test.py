"""Numbers, groups and files of results, for any benchmark."""

import json

import numpy as np
import pytest

from rt2_jax.errors import UserError
from rt2_jax.rollouts import results
from rt2_jax.rollouts.runner import Rollout
from rt2_jax.rollouts.trial import BROKEN_OFF, check_benchmark, choose_suites
from tests.rollouts.toy import Toy, benchmark

SUITES = list(benchmark.suites)


def result(policy, solved, web=None, before=None, plans=None):
  """A result whose trials n succeed where `solved` holds n."""
  suites = {}
  for suite in SUITES:
    rollouts = [
      Rollout(
        trial,
        trial.number in solved,
        "there" if trial.number in solved else "elsewhere",
        {"capped": trial.number not in solved},
        steps=3,
        plan=(plans or {}).get((suite, trial.number), ""),
      )
      for trial in benchmark.trials([suite], 4, 0)
    ]
    suites[suite] = results.summarize(rollouts, benchmark)
  return {
    "policy": policy,
    "what": f"runs/{policy}, step 7",
    "command": "python launch/rollout.py",
    "config_hash": "",
    "seed": 0,
    "trials_per_suite": 4,
    "trials_hash": benchmark.fingerprint(benchmark.trials(SUITES, 4, 0)),
    "benchmark": results.describe(benchmark, "toy"),
    "seconds": 1.0,
    "web": web or {},
    "web_before": before or {},
    "suites": suites,
  }


def save(folder, *found):
  for one in found:
    (folder / f"{one['policy']}.json").write_text(json.dumps(one))
  return folder


def test_a_suites_numbers():
  cell = result("a", {0, 2, 3})["suites"]["near"]
  assert (cell["title"], cell["group"]) == ("near", "easy places")
  assert (cell["n"], cell["successes"], cell["rate"]) == (4, 3, 0.75)
  assert cell["outcomes"] == {"there": 3, "elsewhere": 1, BROKEN_OFF: 0}
  assert (cell["capped"], cell["mean_steps"]) == (1, 3.0)
  assert cell["seeds"] == [0, 1, 2, 3]
  assert cell["trials"][1]["tags"] == {"parity": "odd"}
  assert cell["trials"][1]["goal"] == "1 m"
  assert not cell["trials"][1]["success"]


def test_plans_are_judged_by_the_benchmark():
  plans = {("near", 0): "x = 1", ("near", 1): "x = 2"}
  trials = result("a", {0}, plans=plans)["suites"]["near"]["trials"]
  assert [t["plan_is_right"] for t in trials] == [True, False, None, None]


def test_the_table_groups_by_topic_and_by_tag(tmp_path):
  web = {"name": 0.5, "fact": 1.0}
  mine = result("mine", {0, 2}, web, {"name": 0.625})
  save(tmp_path, result("expert", {0, 1, 2, 3}), mine, result("rest", ()))
  assert list(results.read(tmp_path)) == ["mine", "rest", "expert"]
  text = results.write_table(tmp_path).read_text()
  lines = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in text.splitlines()
  ]
  assert lines[0] == ["", "mine", "rest", "expert"]
  rows = {name: cells for name, *cells in lines[2:]}
  assert list(rows) == [
    *("places (n = 8)", "far (n = 4)"),
    *("all, even (n = 6)", "all, odd (n = 6)", "web answers"),
  ]
  shares = {name: [c.split(" ")[0] for c in rows[name]] for name in rows}
  assert shares["places (n = 8)"] == ["50", "0", "100"]
  assert shares["all, even (n = 6)"] == ["100", "0", "100"]
  assert shares["all, odd (n = 6)"] == ["0", "0", "100"]
  assert rows["web answers"] == ["75 (80% kept)", "", ""]


def test_two_tags_are_two_groupings():
  one = result("a", {0, 1})
  for suite, cell in one["suites"].items():
    for trial in cell["trials"]:
      trial["tags"]["suite"] = suite
  pooled = results.by_tag({"a": one})
  assert list(pooled) == [
    *(("parity", "even"), ("parity", "odd")),
    *(("suite", suite) for suite in SUITES),
  ]
  assert all(cells["a"]["rate"] == 0.5 for cells in pooled.values())


# Wilson's interval: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
@pytest.mark.parametrize(
  ("successes", "n", "low", "high"),
  [
    (0, 20, 0.0, 0.16113),
    (8, 10, 0.49016, 0.94332),
    (50, 100, 0.40383, 0.59617),
    (20, 20, 0.83887, 1.0),
  ],
)
def test_wilson_intervals(successes, n, low, high):
  interval = results.wilson(successes, n)
  assert interval == pytest.approx((low, high), abs=1e-5)
  z, p = 1.959964, successes / n
  middle = p + z**2 / (2 * n)
  half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
  by_hand = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
  assert interval == pytest.approx(by_hand, abs=1e-5)


# -------------------------------------------------------------------- files


def test_results_of_other_trials_are_not_compared(tmp_path):
  other = result("b", {0}) | {"trials_hash": "0" * 16}
  save(tmp_path, result("a", {0}), other)
  with pytest.raises(UserError, match=r"2 different sets.*a.json.*b.json"):
    results.read(tmp_path)
  with pytest.raises(UserError) as error:
    results.check_fit(tmp_path, {"c": result("c", ())})
  assert "0" * 16 in str(error.value) and "--seed=0" in str(error.value)


def test_results_of_another_policy_are_not_replaced(tmp_path):
  there = result("a", {0})
  save(tmp_path, there)
  results.check_fit(tmp_path, {"a": there})
  for field, value in (
    ("what", "runs/other/a, step 7"),
    ("what", "runs/a, step 8"),
    ("config_hash", "0" * 16),
  ):
    with pytest.raises(UserError) as error:
      results.check_fit(tmp_path, {"a": there | {field: value}})
    assert value in str(error.value) and there[field] in str(error.value)
  results.check_fit(tmp_path, {"new": there | {"what": "another"}})


@pytest.mark.parametrize(
  "text", ['{"steps": 8}', "[1]", '{"trials', "7", '{"episodes_hash": "0"}']
)
def test_a_file_that_is_no_result_is_named(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  for read in (results.read, lambda folder: results.check_fit(folder, {})):
    with pytest.raises(UserError, match="config.json', which is no result"):
      read(tmp_path)


def test_nothing_to_report(tmp_path):
  with pytest.raises(UserError, match="got no results in .*launch/rollout.py"):
    results.read(tmp_path)


# --------------------------------------------------------------- benchmarks


def test_choosing_suites():
  assert choose_suites(benchmark.suites, ["all"]) == SUITES
  assert choose_suites(benchmark.suites, ["far", "near"]) == ["near", "far"]
  assert choose_suites(benchmark.suites, ["easy_places", "near"]) == [
    *("near", "middle")
  ]
  with pytest.raises(UserError, match="'nea' for suite.*did you mean 'near'"):
    choose_suites(benchmark.suites, ["nea"])


def test_what_is_no_benchmark():
  assert check_benchmark(benchmark, "x") is benchmark
  with pytest.raises(UserError, match="'lab:x' of type dict without action_s"):
    check_benchmark({}, "lab:x")
  with pytest.raises(UserError, match="'lab:x'.*a class, expected an instance"):
    check_benchmark(Toy, "lab:x")


def test_a_fingerprint_follows_trials_and_settings():
  trials = benchmark.trials(SUITES, 4, 0)
  other = Toy()
  other.settings = {"image_size": 8}
  prints = [
    benchmark.fingerprint(trials),
    benchmark.fingerprint(trials[1:]),
    benchmark.fingerprint(benchmark.trials(SUITES, 4, 1)),
    other.fingerprint(trials),
  ]
  assert len(set(prints)) == 4
  assert Toy().fingerprint(trials) == prints[0]

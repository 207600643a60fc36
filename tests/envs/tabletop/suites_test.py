"""Suites and trials show what they say, the same to every policy."""

import dataclasses
import re

import pytest

from rt2_jax.envs.tabletop import pictures, seen, suites, surfaces, trials
from rt2_jax.envs.tabletop.benchmark import Tabletop
from rt2_jax.envs.tabletop.descriptions import DESCRIBERS, NUMBERS
from rt2_jax.envs.tabletop.instructions import FAMILIES
from rt2_jax.envs.tabletop.suites import SUITES, Things
from tests.envs.tabletop.rendering import PICTURES

KNOWN = pictures.load(PICTURES)
EMERGENT = ("symbol understanding", "reasoning", "people")


def draw(name, count=20, seed=0):
  return trials.draw([SUITES[name]], KNOWN, count, seed)


def shown(trial):
  """Names of the target, the reference and the other things."""
  task = trials.task(trial)
  asked = [*filter(None, (task.target, task.reference))]
  return asked, trial.options["distractors"]


def rows(*names):
  return [SUITES[name] for name in names]


def described(trial):
  """The name of what the suite is about."""
  return getattr(trials.task(trial), trial.options["described"])


def test_trials_follow_from_seed_and_number_alone():
  all_ = trials.draw(SUITES.values(), KNOWN, 4, 0)
  assert len(all_) == 4 * len(SUITES)
  assert [e.suite for e in all_[: len(SUITES)]] == list(SUITES)
  for name in SUITES:
    alone = draw(name, 6)
    assert [e for e in all_ if e.suite == name] == alone[:4]
    assert len({e.seed for e in alone}) == 6
  assert draw("seen", 6, seed=1) != draw("seen", 6)
  prints = {
    Tabletop(image_size=96).fingerprint(all_),
    Tabletop(image_size=64).fingerprint(all_),
    Tabletop(image_size=96).fingerprint(all_[1:]),
  }
  assert len(prints) == 3
  prints = {Tabletop().fingerprint(draw("seen")) for _ in range(2)}
  assert len(prints) == 1


@pytest.mark.parametrize("name", SUITES)
def test_nothing_lies_there_twice_and_families_take_turns(name):
  drawn = draw(name)
  families = SUITES[name].families
  for number, trial in enumerate(drawn):
    asked, others = shown(trial)
    assert len({*asked, *others}) == len(asked) + len(others)
    low, high = SUITES[name].distractors
    assert low <= len(others) <= high
    assert trials.task(trial).family == families[number % len(families)]
    assert "{" not in trial.instruction


@pytest.mark.parametrize(
  "name", [n for n in SUITES if n.startswith(("seen", "backg", "envir"))]
)
def test_seen_things_look_as_in_demonstrations(name):
  for trial in draw(name):
    asked, others = shown(trial)
    assert {*asked, *others} <= set(seen.SEEN_CONCEPTS)
    assert trial.options["style"] == seen.SEEN_STYLE


def test_surfaces_are_the_ones_of_the_name():
  def looks(name):
    options = [e.options for e in draw(name, 40)]
    return tuple({o[n] for o in options} for n in ("background", "environment"))

  taught = set(surfaces.SEEN_BACKGROUNDS), set(surfaces.SEEN_ENVIRONMENTS)
  assert looks("seen") == looks("objects_hard") == looks("people_roles")
  assert looks("seen") == taught
  for level, backgrounds, environments in (
    ("easy", surfaces.EASY_BACKGROUNDS, surfaces.EASY_ENVIRONMENTS),
    ("hard", surfaces.HARD_BACKGROUNDS, surfaces.HARD_ENVIRONMENTS),
  ):
    assert looks(f"backgrounds_{level}") == (set(backgrounds), taught[1])
    assert looks(f"environments_{level}") == (taught[0], set(environments))


@pytest.mark.parametrize("level", ["easy", "hard"])
def test_unseen_objects_are_in_no_demonstration(level):
  taught = {KNOWN[name].category for name in seen.SEEN_CONCEPTS}
  for trial in draw(f"objects_{level}", 40):
    asked, others = shown(trial)
    assert not {*asked, *others} & set(seen.SEEN_CONCEPTS)
    kinds = {KNOWN[name].category for name in (*asked, *others)}
    if level == "easy":
      assert kinds <= taught
    hard = level == "hard"
    assert (trial.options["style"] != seen.SEEN_STYLE) == hard


@pytest.mark.parametrize(
  "name", [s.name for s in SUITES.values() if s.group in EMERGENT]
)
def test_what_is_described_is_unseen_and_fits_one_thing_only(name):
  suite = SUITES[name]
  for trial in draw(name, 30):
    task, options = trials.task(trial), trial.options
    about = KNOWN[described(trial)]
    assert about.name not in seen.SEEN_CONCEPTS
    if suite.words != ("name",):
      pattern = rf"the {about.name}\b"
      assert not re.search(pattern, trial.instruction)
    assert any(DESCRIBERS[w].can(about) for w in suite.words)
    if suite.words in (("kind",), ("colour",)):
      fact = {"kind": "category", "colour": "colour"}[suite.words[0]]
      names = {task.target, task.reference, *options["distractors"], ""}
      others = [KNOWN[n] for n in names - {about.name, ""}]
      values = [c.facts.get(fact, c.category) for c in (about, *others)]
      assert values[0] in trial.instruction
      assert values[0] not in values[1:]


def test_sums_are_right():
  for trial in draw("reasoning_arithmetic", 40):
    text = trial.instruction
    first, sign, second = re.search(r"(\w+) (plus|minus) (\w+)$", text).groups()
    first, second = NUMBERS.index(first), NUMBERS.index(second)
    value = first + second if sign == "plus" else first - second
    assert described(trial) == f"number {value}"


def test_a_symbol_is_acted_on_where_nothing_is_put_on_it():
  for trial in draw("symbols_numbers", 40):
    task, others = trials.task(trial), trial.options["distractors"]
    number = described(trial)
    assert number.startswith("number") and number in trial.instruction
    places = task.family.startswith("place")
    assert trial.options["described"] == ("reference" if places else "target")
    # Another number lies there too, and something that demonstrations show.
    kinds = sorted(KNOWN[name].category == "number" for name in others)
    assert kinds == [False, True]


def test_a_pattern_does_not_fit_another_thing_too():
  assert trials._is_a(KNOWN["green apple"], KNOWN["apple"])
  assert not trials._is_a(KNOWN["apple"], KNOWN["green apple"])
  assert not trials._is_a(KNOWN["number 10"], KNOWN["number 1"])
  for trial in draw("objects_hard", 200):
    asked, others = shown(trial)
    for name in asked:
      assert not any(set(name.split()) <= set(o.split()) for o in others)


def test_families_can_be_left_out():
  some = suites.only(
    rows("seen", "people_names", "people_roles"), ["pick", "push"]
  )
  assert [s.families for s in some] == [("pick", "push"), ("pick",), ("pick",)]
  assert suites.only(some, []) == some
  drawn = trials.draw(some, KNOWN, 4, 0)
  assert {e.tags["family"] for e in drawn} == {"pick", "push"}
  with pytest.raises(ValueError, match="expected one of suite 'people_names'"):
    suites.only(rows("people_names"), ["push"])
  with pytest.raises(ValueError, match="'pik' for task family"):
    suites.only(some, ["pik"])


def test_a_bad_row():
  row = SUITES["seen"]
  bad = dataclasses.replace(row, families=("pik",))
  with pytest.raises(ValueError, match="'pik' for task family.*'pick'"):
    trials.draw([bad], KNOWN, 1, 0)
  bad = dataclasses.replace(row, name="x", targets=Things(True, ("flag",)))
  with pytest.raises(ValueError, match="got suite 'x', which no picture fits"):
    trials.draw([bad], KNOWN, 1, 0)
  assert set(row.families) == set(FAMILIES)

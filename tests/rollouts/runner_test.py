"""Rollouts of any benchmark: what policies see, what faults cost."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from rt2_jax.errors import UserError
from rt2_jax.observation import ObservationSpec
from rt2_jax.rollouts import runner, simulation
from rt2_jax.rollouts.trial import BROKEN_OFF
from tests.rollouts import toy
from tests.rollouts.toy import Toy, benchmark

SUITES = ["near", "middle", "far"]


def play(act, suites=SUITES, count=2, num_envs=4, of=benchmark, **options):
  trials = of.trials(suites, count, 0)
  rollouts = runner.run(act, trials, of, num_envs, 2, **options)
  return sorted(rollouts, key=lambda r: (r.trial.suite, r.trial.number))


def ends(rollouts):
  return {
    (r.trial.suite, r.trial.number): (r.success, r.reason, r.steps)
    for r in rollouts
  }


def test_the_expert_succeeds_and_a_wrong_task_does_not():
  expert = play(None)
  assert [(r.success, r.reason) for r in expert] == [(True, "there")] * 6
  assert {r.trial.suite: r.steps for r in expert} == {
    "near": 2,
    "middle": 3,
    "far": 5,
  }
  past = play(None, expert=toy.farther)
  assert not any(r.success for r in past)
  assert {r.reason for r in past} == {"elsewhere"}


@pytest.mark.parametrize(("num_envs", "execute"), [(1, 1), (4, 2), (3, 1)])
def test_every_policy_meets_the_same_trials(num_envs, execute):
  """However many environments there are, and in whatever order."""
  rollouts = play(toy.act, num_envs=num_envs, execute=execute)
  assert ends(rollouts) == ends(play(None))


def test_rest_meets_the_step_cap():
  for r in play(toy.rest):
    assert (r.success, r.steps, r.capped) == (False, toy.MAX_STEPS, True)


@pytest.mark.parametrize("execute", [1, 2])
def test_a_chunk_is_carried_out_before_the_policy_is_asked_again(execute):
  """The first camera shows the number of steps taken."""
  asked = []

  def act(observations):
    (seen,) = observations
    asked.append(int(seen.images["primary"][-1, 0, 0, 0]))
    return np.array([[[0.0, 0.1], [0.0, 0.2]]], np.float32)

  play(act, ["near"], count=1, num_envs=1, execute=execute)
  assert asked == list(range(0, toy.MAX_STEPS, execute))


@pytest.mark.parametrize("execute", [1, 2])
def test_a_policy_sees_the_last_frames(execute):
  """The newest T frames, also those between two calls of the policy."""
  spec = ObservationSpec(cameras=("primary",), history=3)
  shown = []

  def act(observations):
    for seen in observations:
      assert list(seen.images) == ["primary"] and seen.state is None
      shown.append(tuple(seen.images["primary"][:, 0, 0, 0].tolist()))
    return toy.rest(observations)

  play(act, ["near"], count=1, num_envs=1, spec=spec, execute=execute)
  every = [(max(t - 2, 0), max(t - 1, 0), t) for t in range(toy.MAX_STEPS)]
  assert shown == every[::execute]


def test_a_new_trial_has_a_new_history():
  spec = ObservationSpec(cameras=("wrist",), history=2)
  firsts = {}

  def act(observations):
    for seen in observations:
      frames = seen.images["wrist"][:, 0, 0, 0].tolist()
      firsts.setdefault(seen.instruction, frames)
    return np.array([[[0.0, 1.0]]], np.float32)

  play(act, ["near"], count=3, num_envs=1, spec=spec)
  assert list(firsts.values()) == [[0, 0]] * 3


def test_the_policy_is_always_called_with_as_many_rows():
  rows = []

  def act(observations):
    rows.append(len(observations))
    assert all(seen.state.shape == (1,) for seen in observations)
    return toy.act(observations)

  assert len(play(act, count=3, num_envs=4)) == 9
  assert set(rows) == {4}


def test_the_first_plan_of_a_trial_is_kept():
  def act(observations):
    plans = [f"{seen.instruction}; {seen.state[0]}" for seen in observations]
    return plans, toy.act(observations)

  for r in play(act, count=3):
    assert r.plan == f"{r.trial.instruction}; 0.0"


def test_each_robots_last_chunk_drafts_its_next_one():
  """Chunks name the instruction and the step that they follow."""
  drafted = []

  def act(observations, drafts):
    for seen, draft in zip(observations, drafts, strict=True):
      step = seen.images["primary"][-1, 0, 0, 0]
      drafted.append(step)
      if step == 0:
        assert draft is None
      else:
        assert draft.tolist() == chunk(seen, step - 1).tolist()
    steps = [seen.images["primary"][-1, 0, 0, 0] for seen in observations]
    return np.stack(list(map(chunk, observations, steps)))

  def chunk(seen, step):
    goal, number = seen.instruction[6], seen.instruction[-1]  # digits
    return np.float32([[0, float(f"0.0{goal}{number}")], [0, 0.01 * step]])

  assert len(play(act, count=3, num_envs=4, drafted=True)) == 9
  assert max(drafted) > 1


def test_films_show_every_step_of_the_first_camera():
  for r in play(None, num_filmed=1):
    shown = r.steps + 1 if r.trial.number < 1 else 0
    assert [int(image[0, 0, 0]) for image in r.images] == list(range(shown))
    assert r.control_hz == toy.ToyEnvironment.control_hz


# ------------------------------------------------------------------- faults


@pytest.mark.parametrize(
  ("fault", "error"),
  [
    ("throw", "OSError: the camera's cable is loose"),
    ("die", r"its process died \(exit code -9\)"),
    ("hang", r"its process did not answer for 2 s"),
  ],
)
def test_a_faulty_environment_costs_its_own_trial_only(
  fault, error, monkeypatch
):
  monkeypatch.setattr(simulation, "_ANSWER_S", 2.0)
  monkeypatch.setattr(simulation, "_END_S", 0.3)
  broken = Toy(faults=[("middle", 0, fault), ("far", 1, fault)])
  rollouts = play(None, num_envs=6, of=broken, num_filmed=2)
  assert len(rollouts) == 6
  for r in rollouts:
    if "fault" in r.trial.options:
      assert (r.success, r.reason, r.steps) == (False, BROKEN_OFF, 0)
      assert re.match(error, r.error)
    else:
      assert r.success and not r.error
      assert len(r.images) == r.steps + 1


@pytest.mark.parametrize("shape", [(4, 3), (4, 1, 3), (3, 1, 2), (4, 2)])
def test_actions_of_another_shape_stop_everything(shape):
  with pytest.raises(UserError) as error:
    play(lambda observations: np.zeros(shape, np.float32))
  assert f"got actions {list(shape)}" in str(error.value)
  assert "expected [4, H, 2]" in str(error.value)


@pytest.mark.parametrize("execute", [0, 3])
def test_no_chunk_has_so_many_actions(execute):
  with pytest.raises(UserError, match=f"execute = {execute}, expected 1 to 2"):
    play(toy.act, execute=execute)


def test_a_policy_that_reads_more_than_is_shown():
  spec = ObservationSpec(cameras=("primary", "head"))
  with pytest.raises(UserError, match="'head'.*'wrist'"):
    play(toy.act, spec=spec)
  spec = ObservationSpec(state=toy.SPACE)
  with pytest.raises(UserError, match=r"\['stop', 'dx'\].*\['x'\]"):
    play(toy.act, spec=spec)


class Unmakable(Toy):
  def __init__(self, fault):
    super().__init__()
    self._fault = fault

  def make(self):
    if self._fault == "user":
      raise UserError("got no robot, expected one")
    toy.fail(self._fault)


@pytest.mark.parametrize(
  ("fault", "message"),
  [
    ("user", "got no robot, expected one"),
    ("die", r"got no environment \(its process died"),
    ("throw", r"got no environment \(its process died"),
  ],
)
def test_environments_that_cannot_be_made(fault, message):
  with pytest.raises(UserError, match=message):
    play(None, of=Unmakable(fault))


def test_a_benchmark_that_does_not_pickle():
  unpicklable = Toy()
  unpicklable.baselines = {"x": lambda: None}
  with pytest.raises(UserError, match="benchmark Toy that cannot be sent"):
    play(None, of=unpicklable)


# -------------------------------------------------------- other interpreters


@pytest.fixture(scope="module")
def with_numpy_alone(tmp_path_factory) -> str:
  """An environment of its own, which has numpy and nothing else."""
  folder = tmp_path_factory.mktemp("venv")
  command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
  subprocess.run(command, check=True)
  (site,) = folder.glob("lib/python*/site-packages")
  installed = pathlib.Path(np.__file__).parents[1]
  for name in ("numpy", "numpy.libs"):
    if (installed / name).exists():
      (site / name).symlink_to(installed / name)
  return str(folder / "bin/python")


def test_workers_run_under_another_interpreter(with_numpy_alone, monkeypatch):
  """It sees this package, but none of those installed beside it."""
  monkeypatch.delenv("PYTHONPATH", raising=False)
  elsewhere = Toy(with_numpy_alone, faults=[("middle", 1, "die")])
  for r in play(toy.act, of=elsewhere):
    if "fault" in r.trial.options:
      assert r.reason == BROKEN_OFF
    else:
      assert r.success
      assert r.details["executable"] == with_numpy_alone
  here = {r.details["executable"] for r in play(None)}
  assert here == {sys.executable}


def test_an_interpreter_that_is_not_there():
  with pytest.raises(UserError, match="'/nowhere/python'.*No such file"):
    play(None, of=Toy("/nowhere/python"))

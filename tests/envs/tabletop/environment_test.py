"""The environment as policies meet it; see rendering.py for `rendered`."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from rt2_jax.action_spaces import TABLETOP
from rt2_jax.envs.tabletop import surfaces
from rt2_jax.envs.tabletop.environment import (
  FAILED,
  NOTHING,
  SUCCESS,
  WRONG_OBJECT,
  TabletopConfig,
)
from rt2_jax.envs.tabletop.instructions import Task
from tests.conftest import ROOT
from tests.envs.tabletop.rendering import PICTURES, environment, rendered

REST = np.array([0, 0, 0, 0, 0, 0, 0, 1.0])
STOP = np.array([1, 0, 0, 0, 0, 0, 0, 1.0])


def drive(env, **reset):
  """The expert's episode: all images, and the last info."""
  observation, info = env.reset(**reset)
  images = [observation["image"]]
  over = False
  while not over:
    observation, reward, terminated, truncated, info = env.step(
      env.oracle_action()
    )
    images.append(observation["image"])
    over = terminated or truncated
  return images, info, reward


@rendered
def test_the_expert_succeeds_and_is_rewarded():
  images, info, reward = drive(environment(), seed=1)
  assert info["outcome"] == SUCCESS and info["success"]
  assert info["steps"] == len(images) - 1 and reward == 1.0
  assert info["engaged"] == info["target"]


@rendered
def test_a_seed_decides_an_episode():
  env = environment()
  first, info, _ = drive(env, seed=7)
  drive(env, seed=8)
  again, same, _ = drive(env, seed=7)
  assert info == same
  np.testing.assert_array_equal(np.stack(first), np.stack(again))
  other, _ = env.reset(seed=8)
  assert (other["image"] != first[0]).mean() > 0.05


@rendered
def test_one_option_changes_nothing_else():
  env = environment()
  first, info = env.reset(seed=3)
  spots = env.world.spots()
  options = {"background": "checks", "style": "twemoji", "environment": "dusk"}
  second, same = env.reset(seed=3, options=options)
  assert info == same
  np.testing.assert_array_equal(spots, env.world.spots())
  assert (first["image"] != second["image"]).mean() > 0.9


@rendered
def test_pictures_tables_and_light_are_seen():
  env = environment()
  fixed = {"task": Task("pick", "apple"), "distractors": ()}

  def look(**options):
    image, _ = env.reset(seed=5, options=fixed | options)
    return image["image"].astype(int)

  plain = look(background="oak")
  y_min, x_min, y_max, x_max = (np.array(env.box("apple")) * 64).round()
  block = np.zeros((64, 64), bool)
  block[int(y_min) - 2 : int(y_max) + 4, int(x_min) - 2 : int(x_max) + 2] = True
  banana = env.reset(
    seed=5,
    options=fixed | {"task": Task("pick", "banana"), "background": "oak"},
  )[0]["image"].astype(int)
  changed = np.abs(banana - plain).max(-1) > 20
  assert changed[block].mean() > 0.1 and not changed[~block].any()
  red = plain[block][:, 0] - plain[block][:, 1] > 80
  assert red.mean() > 0.1  # the apple
  slate = look(background="slate")
  assert np.abs(slate - plain)[~block].mean() > 30
  assert look(background="oak", environment="dusk").mean() < 0.8 * plain.mean()
  knocked = look(background="oak", environment="knocked")
  assert np.abs(knocked - plain)[block].mean() > 15


@rendered
def test_the_box_lies_around_the_picture():
  env = environment()
  env.reset(
    seed=2,
    options={
      "task": Task("pick", "black square"),
      "distractors": (),
      "background": "beech",
    },
  )
  env.world.step(np.array([0.2, 0.2, 0.1]), np.zeros(3), 1.0)  # out of the way
  dark = env.render().max(-1) < 90
  y_min, x_min, y_max, x_max = np.array(env.box("black square")) * 64
  top, left = int(y_min) - 2, int(x_min) - 2
  rows, columns = np.nonzero(dark[top : int(y_max) + 3, left : int(x_max) + 3])
  rows, columns = rows + top + 0.5, columns + left + 0.5
  assert abs(rows.mean() - (y_min + y_max) / 2) < 1.0
  assert abs(columns.mean() - (x_min + x_max) / 2) < 1.0
  assert rows.max() < y_max and columns.max() < x_max


@rendered
def test_ways_to_fail_are_told_apart():
  env = environment()
  fixed = {"instruction": "pick up the apple", "distractors": ("banana",)}
  env.reset(seed=0, options=fixed)
  info = env.step(STOP)[-1]
  assert (info["outcome"], info["engaged"]) == (NOTHING, "")
  assert (info["family"], info["target"]) == ("pick", "apple")

  def pick(name, stop_early):
    env.reset(seed=0, options=fixed)
    asked, env.task = env.task, Task("pick", name)
    actions = []
    while not actions or actions[-1][0] < 0.5:
      actions.append(env.oracle_action())
      if actions[-1][0] < 0.5:
        env.step(actions[-1])
    env.task = asked
    if stop_early:  # lets go of it again
      env.step(REST)
    return env.step(STOP)[-1]

  info = pick("banana", stop_early=False)
  assert (info["outcome"], info["engaged"]) == (
    WRONG_OBJECT,
    "banana",
  )
  info = pick("apple", stop_early=True)
  assert (info["outcome"], info["engaged"]) == (FAILED, "apple")
  assert pick("apple", stop_early=False)["outcome"] == SUCCESS


@rendered
def test_a_policy_that_never_ends_is_cut_off():
  env = environment(TabletopConfig(image_size=64, max_steps=4))
  env.reset(seed=0)
  for t in range(4):
    _, reward, terminated, truncated, info = env.step(REST)
    assert not terminated and truncated == (t == 3) and reward == 0.0
  assert info["outcome"] == NOTHING
  with pytest.raises(RuntimeError, match="outside of an episode.*reset"):
    env.step(REST)


@rendered
def test_other_words_for_a_task():
  env = environment()
  observation, info = env.reset(
    seed=0,
    options={
      "task": Task("place_on", "apple", "number 3"),
      "instruction": "leg den Apfel auf zwei plus eins, bitte schön",
      "distractors": ("number 4", "banana"),
    },
  )
  assert observation["instruction"].startswith("leg den Apfel")
  assert info["reference"] == "number 3"
  mats = {t.name for t in env.world.things if not t.is_block}
  assert mats == {"number 3", "number 4"}  # the only mat would give it away
  assert observation["instruction"] in env.observation_space["instruction"]


@rendered
def test_slots_do_not_give_the_target_away():
  env = environment()
  places = set()
  for seed in range(12):
    env.reset(seed=seed)
    places.add(env.world.find(env.task.target))
  assert len(places) > 1


@pytest.mark.parametrize(
  ("action", "message"),
  [
    (np.zeros(7), "expected 8 finite numbers: terminate, dx"),
    (np.full(8, np.nan), "got action .nan.*expected 8 finite"),
  ],
)
@rendered
def test_an_action_of_the_wrong_kind(action, message):
  env = environment()
  env.reset(seed=0)
  with pytest.raises(ValueError, match=message):
    env.step(action)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"tusk": 1}, "'tusk' for option of reset.*did you mean 'task'"),
    ({"instruction": "lift the aple"}, "'aple' for object.*'apple'"),
    ({"task": Task("pik", "apple")}, "'pik' for task family.*'pick'"),
    ({"task": Task("pick", "aple")}, "'aple' for object.*'apple'"),
    ({"background": "sand"}, "'sand' for background, expected one of: oak"),
    ({"environment": "attic"}, "'attic' for environment, .*one of: lab"),
    ({"style": "oil"}, "'oil' for art style, expected one of: noto"),
  ],
)
@rendered
def test_an_unknown_option(options, message):
  with pytest.raises(ValueError, match=message):
    environment().reset(seed=0, options=options)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"families": ("fly",)}, "'fly' for task family, expected one of: move_to"),
    ({"concepts": ("aple",) * 9}, "'aple' for object"),
    ({"concepts": ("apple", "dog")}, "got 2 concepts, expected at least 4"),
    ({"distractors": (1, 7)}, r"got distractors \(1, 7\), expected"),
    ({"styles": ("oil",)}, "'oil' for art style"),
    ({"backgrounds": ("sand",)}, "'sand' for background"),
    ({"environments": ("attic",)}, "'attic' for environment"),
  ],
)
@rendered
def test_an_unknown_name_in_the_config(change, message):
  config = dataclasses.replace(TabletopConfig(image_size=64), **change)
  with pytest.raises(ValueError, match=message):
    environment(config)


def test_all_backgrounds_and_environments_exist_and_differ():
  names = (
    surfaces.SEEN_BACKGROUNDS
    + surfaces.EASY_BACKGROUNDS
    + surfaces.HARD_BACKGROUNDS
  )
  tables = [surfaces.background(name) for name in names]
  assert len({t.tobytes() for t in tables}) == len(names)
  assert all(t.shape == (128, 128, 3) and t.dtype == np.uint8 for t in tables)
  lights = [
    surfaces.lighting_and_viewpoint(name)
    for name in surfaces.SEEN_ENVIRONMENTS
    + surfaces.EASY_ENVIRONMENTS
    + surfaces.HARD_ENVIRONMENTS
  ]
  assert len(set(lights)) == len(lights)


def test_the_action_space_is_rt2s_in_small_steps():
  assert TABLETOP.names[0] == "terminate" and TABLETOP.names[-1] == "gripper"
  low = {d.name: d.low for d in TABLETOP.dimensions}
  assert low["dx"] == -0.05 and low["dyaw"] == -0.25


OPEN_CAMERA = f"""
from rt2_jax.envs.tabletop.environment import Pictures, TabletopEnv
try:
  TabletopEnv(Pictures.load({str(PICTURES)!r})).open_camera()
except ValueError as error:
  print(error)
"""


@pytest.mark.parametrize(
  ("before", "variables", "message"),
  [
    ("", {"MUJOCO_GL": "glfw", "DISPLAY": ""}, "apt-get install libegl1"),
    ("import tensorflow\n", {}, "run the environment in a process of its own"),
  ],
)
def test_where_nothing_can_be_drawn(before, variables, message):
  done = subprocess.run(
    [sys.executable, "-c", before + OPEN_CAMERA],
    env={**os.environ, **variables},
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert message in done.stdout, done.stderr[-2000:]


def test_without_the_simulators_packages(tmp_path):
  """MuJoCo is hidden, as on a machine without the extra."""
  (tmp_path / "sitecustomize.py").write_text(
    "import importlib.util as u\n"
    "find = u.find_spec\n"
    "u.find_spec = lambda name: None if name == 'mujoco' else find(name)\n"
  )
  done = subprocess.run(
    [sys.executable, "launch/rollout.py", "--policy=null", "--output=x"],
    env={
      **os.environ,
      "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))),
    },
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode
  assert "got no package 'mujoco'" in done.stderr
  assert "pip install -e '.[sim]'" in done.stderr

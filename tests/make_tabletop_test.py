"""Demonstrations on the tabletop, written and read back."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import make_tabletop
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.envs.tabletop.instructions import FAMILIES
from rt2_jax.errors import UserError
from rt2_jax.images import decode
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ONE_CAMERA
from rt2_jax.tokenizer import Tokenizer
from tests.conftest import ROOT

SETTINGS = {
  "train_episodes": 6,
  "val_episodes": 2,
  "seed": 0,
  "image_size": 48,
  "families": list(FAMILIES),
  "concepts": ["apple", "dog", "car", "house", "drum", "tree"],
  "style": "noto",
  "distractors": [0, 1],
  "wander": 0.2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  output_dir = tmp_path_factory.mktemp("data")
  return make_tabletop.make(output_dir, 1, **SETTINGS)


def test_training_reads_what_the_expert_did(folder):
  config = SourceConfig("tabletop", str(folder))
  source = open_source(config, "train")
  index = source.index
  assert index.episode.max() == 5 and len(index.texts) >= 3
  for episode in range(6):
    action = index.action[index.episode == episode]
    np.testing.assert_array_equal(action[:-1, 0], 0.0)
    assert action[-1, 0] == 1.0  # terminate
    assert np.abs(action[:, 1:4]).max() <= 0.05 + 1e-6  # m
    assert np.abs(action[:, 4:7]).max() <= 0.25 + 1e-6  # rad
    assert set(action[:, 7]) <= {0.0, 1.0}
  seen = [source.storage.read(source.requests([i])[0]) for i in range(4)]
  images = np.stack([decode(*each) for each in seen])
  assert images.shape == (4, 48, 48, 3) and images.std() > 10


def test_the_state_is_where_the_actions_lead(folder):
  """But for the steps in which the hand is led astray."""
  config = SourceConfig("tabletop", str(folder))
  spec = config.observation_spec(ONE_CAMERA, reads_state=True)
  index = open_source(config, "train", spec).index
  for d, values in zip(spec.state.dimensions, index.state.T, strict=True):
    assert d.low - 1e-6 <= values.min() and values.max() <= d.high + 1e-6
  inside = np.diff(index.episode) == 0
  moved = np.diff(index.state[:, :6], axis=0)[inside]
  follows = np.isclose(moved, index.action[:-1, 1:7][inside], atol=1e-5)
  assert 0.6 < follows.all(1).mean() < 1
  closed = index.state[1:, 6] == index.action[:-1, 7]
  assert closed[inside].mean() > 0.8


def test_who_is_led_astray_moves_and_fumbles_but_does_not_end():
  rng = np.random.default_rng(0)
  action = np.array([0, 0.05, 0, 0, 0, 0, 0, 1], np.float32)
  astray = np.stack(
    [make_tabletop.lead_astray(action, rng) for _ in range(500)]
  )
  assert np.abs(astray[:, 1:4]).max() <= make_tabletop.ASTRAY
  assert (astray[:, 7] == 0).mean() == pytest.approx(
    make_tabletop.FUMBLE, abs=0.06
  )
  stop = np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32)
  np.testing.assert_array_equal(make_tabletop.lead_astray(stop, rng), stop)


def test_plans_name_what_the_expert_acts_on(folder):
  config = SourceConfig("tabletop_with_plan", str(folder))
  source = open_source(config, "train")
  place = r" <loc\d{4}><loc\d{4}>"
  for i in range(len(source)):
    plan, instruction = source.plan(i), source.instruction(i)
    things = re.fullmatch(rf"(\w+){place}(?:, (\w+){place})?", plan).groups()
    named = [word for word in SETTINGS["concepts"] if word in instruction]
    assert set(named) == {thing for thing in things if thing}


def test_actions_survive_their_tokens(folder):
  config = SourceConfig("tabletop", str(folder))
  action = open_source(config, "train").index.action
  text = Tokenizer.from_file(ROOT / "data/small_tokenizer.model")
  tokenizer = ActionTokenizer(config.space, text.action_route("rare"))
  decoded = tokenizer.decode(tokenizer.encode(action[:, None]))[:, 0]
  assert np.abs(decoded - action)[:, 1:4].max() < 0.0002 + 1e-6  # m
  np.testing.assert_allclose(decoded[-1, 1:7], 0.0, atol=1e-7)  # rest is exact


def test_the_whole_record(folder):
  data = tfds.builder_from_directory(folder).as_dataset("val")
  for episode in tfds.as_numpy(data):
    steps = list(episode["steps"])
    names = {k: v.decode() for k, v in episode["episode_metadata"].items()}
    assert names["family"] in FAMILIES and names["style"] == "noto"
    assert names["target"] in SETTINGS["concepts"]
    assert [s["is_first"] for s in steps] == [True] + [False] * (len(steps) - 1)
    assert steps[-1]["is_terminal"] and steps[-1]["reward"] == 1.0
    y_min, x_min, y_max, x_max = steps[0]["target_box"]
    assert 0 <= y_min < y_max <= 1 and 0 <= x_min < x_max <= 1
    assert bool(names["reference"]) == bool(steps[0]["reference_box"].any())


def test_the_same_data_is_not_made_twice(folder, capsys):
  make_tabletop.make(folder.parent.parent, 1, **SETTINGS)
  assert "holds these episodes already" in capsys.readouterr().out
  with pytest.raises(UserError, match="pass another --output_dir"):
    make_tabletop.make(folder.parent.parent, 1, **SETTINGS | {"seed": 1})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"concepts": ["aple", *"bcde"]}, "'aple' for object, expected.*'apple'"),
    ({"families": ["pik"]}, "'pik' for task family"),
    ({"style": "oil"}, "'oil' for art style"),
    ({"concepts": ["apple"]}, "got 1 concepts, expected at least 3"),
  ],
)
def test_settings_that_make_no_sense(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    make_tabletop.make(tmp_path, 1, **SETTINGS | change)
  assert not list(tmp_path.iterdir())  # nothing is left behind


def test_the_report_counts_every_attempt():
  outcomes = {("pick", "success"): 3, ("pick", "nothing touched"): 1}
  assert make_tabletop.report(outcomes) == (
    "expert: pick           3/4 = 75.0%"
  )

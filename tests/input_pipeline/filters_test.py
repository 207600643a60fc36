"""Filters: episodes and steps that a source leaves out."""

import numpy as np
import pytest

from rt2_jax.action_spaces import RT2
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.byte_ranges import LocalStorage
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import datasets
from rt2_jax.input_pipeline.episodes import Canonical
from rt2_jax.input_pipeline.filters import Filters, make_filters
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.input_pipeline.step_index import StepSource
from tests import tiny_datasets
from tests.input_pipeline.rlds_test import index_with


def filtered(tmp_path, filters, episodes):
  tiny_datasets.write(tmp_path, episodes)
  config = SourceConfig("bridge_dataset", str(tmp_path), filters=filters)
  return open_source(config, "train").index


def test_episodes_are_filtered_by_their_features(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(3)]
  for i, episode in enumerate(episodes):
    episode["aspects/success"] = [int(i != 1)]
    episode["attributes/env_name"] = [b"kitchen" if i < 2 else b"office"]
  index = filtered(
    tmp_path / "a", {"episodes": {"aspects/success": True}}, episodes
  )
  assert len(index) == 10 and index.episode.max() == 1
  index = filtered(
    tmp_path / "b", {"episodes": {"attributes/env_name": "office"}}, episodes
  )
  assert len(index) == 5
  with pytest.raises(
    ValueError, match="got no step in split 'train' of .*rela"
  ):
    filtered(
      tmp_path / "c", {"episodes": {"attributes/env_name": "lab"}}, episodes
    )


@pytest.mark.parametrize(
  ("filters", "kept"),
  [
    ({"not_episodes": {"episode_metadata/episode_id": [0, 2]}}, [1]),
    ({"episodes": {"episode_metadata/file_path": "*/lab_?/*"}}, [0, 1]),
    ({"episodes": {"episode_metadata/file_path": ["no", "/b/*"]}}, [2]),
    ({"not_episodes": {"episode_metadata/file_path": "/b/*[1].h5"}}, [0, 1]),
    ({"episodes": {"episode_metadata/file_path": "*/x.h[5]"}}, []),
    ({"not_episodes": {"episode_metadata/score": [0.1, 1]}}, [0, 2]),
    ({"text_length": [1, 99]}, [0, 2]),
    ({"text_length": [0, 4]}, [1, 2]),
  ],
)
def test_episodes_are_filtered_by_id_file_and_text(tmp_path, filters, kept):
  files = [b"/a/lab_1/x.h5", b"/a/lab_2/x.h5", b"/b/lab_10/x[1].h5"]
  texts = "put carrot on plate", "  ", "stop"
  episodes = []
  for i, text in enumerate(texts):
    episodes.append(tiny_datasets.bridge_episode(i, 1, text))
    episodes[-1]["episode_metadata/episode_id"] = [i]
    episodes[-1]["episode_metadata/file_path"] = [files[i]]
    episodes[-1]["episode_metadata/score"] = [0.1 * i]
  if not kept:
    with pytest.raises(UserError, match="no step .* after the filters"):
      filtered(tmp_path, filters, episodes)
    return
  index = filtered(tmp_path, filters, episodes)
  assert [index.texts[t] for t in index.text] == [texts[i] for i in kept]


@pytest.mark.parametrize(
  ("filters", "told"),
  [
    ({"not_episodes": {"id": ["1"]}}, "got 0 in 'id'.*filter's '1'.*number"),
    ({"not_episodes": {"file": 1}}, "got 'a' in 'file'.*filter's 1.*text"),
    ({"episodes": {"id": None}}, "filter's None"),
    ({"text_length": [1, "9"]}, "text_length"),
    ({"text_length": [1.0, 9.0]}, "text_length"),
  ],
)
def test_values_of_another_kind_never_match(tmp_path, filters, told):
  """`not_episodes` would keep what it should leave out."""
  episode = tiny_datasets.bridge_episode(0)
  episode["id"], episode["file"] = [0], [b"a"]
  with pytest.raises(UserError, match=told):
    filtered(tmp_path, filters, [episode])


def test_steps_that_change_nothing_are_dropped(tmp_path):
  episode = tiny_datasets.bridge_episode(0)
  action = np.reshape(episode["steps/action"], (5, 7))
  action[:, 6] = [1, 1, 0, 0, 0]
  action[1:4, :6] = 0.0  # 1: still; 2: still, but closes; 3: still
  episode["steps/action"] = action.ravel().tolist()
  index = filtered(tmp_path, {"drop_noops": True}, [episode])
  np.testing.assert_allclose(index.action[:, 1:7], action[[0, 2, 4], :6])
  assert index.action[-1, 0] == 1.0


def test_the_plans_of_kept_steps_are_kept(tmp_path):
  boxes = [(y, 0.0, y, 0.1) for y in (0.0, 0.3, 0.6)]
  episode = tiny_datasets.tabletop_episode("apple", boxes)
  episode["steps/action"][8 * 2 + 7] = 1.0  # 1: nothing; 2: opens
  tiny_datasets.write(tmp_path, [episode], "tabletop")
  config = SourceConfig(
    "tabletop_with_plan", str(tmp_path), filters={"drop_noops": True}
  )
  source = open_source(config, "train")
  assert len(source) == 1
  assert source.plan(0) == "apple <loc0608><loc0032>"


def test_frames_are_the_cameras_own_whatever_is_filtered(tmp_path):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(2)]
  for episode in episodes:
    action = np.reshape(episode["steps/action"], (5, 7))
    action[:, 6] = 1
    action[[0, 1, 3], :6] = 0.0  # steps 2 and 4 move, and are kept
    episode["steps/action"] = action.ravel().tolist()
  index = filtered(tmp_path, {"drop_noops": True}, episodes)
  source = StepSource(LocalStorage(), index, RT2, history=3)
  for i, (seed, step) in enumerate([(0, 2), (0, 4), (1, 2), (1, 4)]):
    shown = source.storage.read(source.requests([i])[0])
    expected = [tiny_datasets.jpeg(seed * 1000 + step - b) for b in (2, 1, 0)]
    assert shown == expected


def joints(unit, names=("joint_1", "joint_2")):
  gripper = Dimension("gripper", "open")
  return ActionSpace(
    "arm", "joints", (*(Dimension(n, unit, -2, 2) for n in names), gripper)
  )


def moving(episode):
  """Moves in steps 1 and 2; the gripper closes in step 4."""
  action = np.zeros((6, 3), np.float32)
  action[1:3, 0] = 0.3
  action[:4, 2] = 1.0
  return Canonical(["go"] * 6, action)


def test_speeds_are_motions(tmp_path, monkeypatch):
  source = index_with(
    tmp_path, monkeypatch, joints("rad/s"), moving, drop_noops=True
  )
  np.testing.assert_array_equal(source.index.frame, [1, 2, 4])


@pytest.mark.parametrize(
  "space",
  [
    joints("rad"),
    joints("normalized"),
    joints("deg/s"),
    joints("1"),
    joints("m", ("x", "depth")),
    joints("", ("dx", "dy")),
  ],
)
def test_where_nothing_tells_what_stands_still_noops_are_kept(
  tmp_path, monkeypatch, space
):
  """Joint angles, say, are in radians too, and never near zero."""
  name = space.names[0]
  with pytest.raises(
    ValueError, match=f"got filters.drop_noops for .*'arm'.* {name!r} .*expect"
  ):
    index_with(tmp_path, monkeypatch, space, moving, drop_noops=True)
  assert len(index_with(tmp_path, monkeypatch, space, moving)) == 6


def test_all_own_spaces_tell_what_stands_still():
  for known in datasets.DATASETS.values():
    Filters(drop_noops=True).check(known.space)


def test_an_unknown_filter_is_named(tmp_path):
  with pytest.raises(
    ValueError, match="'drop_noop' for .* filters, .*drop_noops"
  ):
    filtered(tmp_path, {"drop_noop": True}, [tiny_datasets.bridge_episode(0)])


@pytest.mark.parametrize(
  ("filters", "problem"),
  [
    (["drop_noops"], r"got filters = \['drop_noops'\], expected .*episodes"),
    ({"episodes": None}, "got filters.episodes = None, expected {"),
    (
      {"drop_noops": "False"},
      "got filters.drop_noops = 'False', expected",
    ),
    (
      {"text_length": [9, 1]},
      r"got filters.text_length = \[9, 1\], expected the",
    ),
  ],
)
def test_filters_of_another_type_are_refused(filters, problem):
  with pytest.raises(UserError, match=problem):
    make_filters(filters)

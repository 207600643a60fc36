"""The programs of data/: the committed tokenizer and the rendered episodes."""

import math

import numpy as np
import pytest
import sentencepiece
import tensorflow_datasets as tfds

from data import make_reach_episodes, make_tokenizer, reach_scene

# ------------------------------------------------------------------ tokenizer

# The corpus that the committed model learnt; another Python has another text.
COMMITTED_CORPUS = "8a0aae8a9803dc65"


@pytest.fixture(scope="module")
def tokenizer():
  return sentencepiece.SentencePieceProcessor(
    model_file=str(make_tokenizer.DEFAULT_OUTPUT)
  )


def test_tokenizer_keeps_gemmas_conventions(tokenizer):
  assert make_tokenizer.DEFAULT_OUTPUT.stat().st_size < 100_000
  assert tokenizer.get_piece_size() == 2048
  specials = [tokenizer.id_to_piece(i) for i in range(4)]
  assert specials == ["<pad>", "<eos>", "<bos>", "<unk>"]
  assert (tokenizer.pad_id(), tokenizer.eos_id()) == (0, 1)
  assert (tokenizer.bos_id(), tokenizer.unk_id()) == (2, 3)
  assert sum(map(tokenizer.is_byte, range(2048))) == 256


def test_digits_spaces_and_newlines_stand_alone(tokenizer):
  pieces = tokenizer.encode("1 128 91", out_type=str)
  assert pieces == ["1", "▁", "1", "2", "8", "▁", "9", "1"]
  assert tokenizer.encode("\n", out_type=str) == ["\n"]
  unknown = tokenizer.unk_id()
  assert unknown not in map(tokenizer.piece_to_id, ["▁", *"0123456789"])


@pytest.mark.parametrize(
  "text", ["", " a", "a ", "two  spaces\n\nlines\n", "Ça va? 你好 🤖"]
)
def test_tokenizer_round_trip(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
  ("text", "most"),
  [
    ("Q: what action should the robot take to put carrot on plate? A:", 16),
    ("put carrot on plate", 4),
    ("put cup from counter or drying rack into sink", 9),
    ("turn lever vertical to front", 5),
    ("flip pot upright which is in sink", 7),
    ("move red star near green block", 6),
  ],
)
def test_robot_text_is_short(tokenizer, text, most):
  assert len(tokenizer.encode(text)) <= most


def test_there_is_room_for_action_tokens(tokenizer):
  rare = make_tokenizer.rare_pieces(tokenizer)
  assert len(rare) >= 256
  for i in rare:
    assert not tokenizer.is_control(i) and not tokenizer.is_byte(i)
    assert tokenizer.piece_to_id(tokenizer.id_to_piece(i)) == i
    assert tokenizer.id_to_piece(i).replace("▁", "").isprintable()


def test_training_again_gives_the_committed_pieces(tokenizer):
  sentences = make_tokenizer.corpus()
  if make_tokenizer.fingerprint(sentences) != COMMITTED_CORPUS:
    pytest.skip("this Python's language reference differs from 3.11.7's")
  again = sentencepiece.SentencePieceProcessor(
    model_proto=make_tokenizer.train(sentences)
  )
  assert [again.id_to_piece(i) for i in range(2048)] == [
    tokenizer.id_to_piece(i) for i in range(2048)
  ]


# ---------------------------------------------------------------------- scene


@pytest.mark.parametrize("seed", range(60))
def test_the_oracle_succeeds(seed):
  scene, state = reach_scene.sample(np.random.default_rng(seed))
  assert not reach_scene.is_success(scene, state)
  for _ in range(25):
    action = reach_scene.oracle(scene, state)
    if action.terminate:
      break
    state = reach_scene.step(scene, state, action)
  assert action.terminate
  assert reach_scene.is_success(scene, state)
  target, reference = scene.task
  if reference is None:
    assert state.held == target and state.objects[target, 2] > 0.1
  else:
    offset = state.objects[target] - state.objects[reference]
    assert np.linalg.norm(offset[:2]) < 0.13
    assert state.held is None and state.objects[target, 2] == 0


def test_a_higher_rate_gives_smaller_steps():
  lengths, moves = {3.0: [], 12.0: []}, []
  for rate, found in lengths.items():
    for seed in range(3):
      episode = make_reach_episodes.episode(
        np.random.default_rng(seed), rate=rate
      )
      found.append(len(episode["steps"]))
      moves.append(column(episode, "action", "world_vector") * rate)
  assert np.mean(lengths[12.0]) / np.mean(lengths[3.0]) > 2.5
  np.testing.assert_allclose(  # m/s
    [np.abs(m).max() for m in moves], 3 * reach_scene.MAX_STEP, rtol=1e-5
  )


def changed_pixels(scene, a, b):
  first, second = reach_scene.render(scene, a), reach_scene.render(scene, b)
  return int((np.abs(first.astype(int) - second).max(axis=-1) > 20).sum())


def test_the_picture_shows_what_the_action_depends_on():
  scene, state = reach_scene.sample(np.random.default_rng(0))
  state = state._replace(gripper=np.array([0.6, 0, 0.1, 0]), closed=False)
  assert changed_pixels(scene, state, state) == 0
  for offset in np.diag([0.02, 0.02, 0.02, 0.2]):
    moved = state._replace(gripper=state.gripper + offset)
    assert changed_pixels(scene, state, moved) > 300
  assert changed_pixels(scene, state, state._replace(closed=True)) > 100
  moved = state._replace(objects=state.objects + np.eye(4)[0] * 0.03)
  assert changed_pixels(scene, state, moved) > 300


def test_objects_have_the_colours_that_the_instruction_names():
  scene, state = reach_scene.sample(np.random.default_rng(3))
  away = state._replace(gripper=np.array([0.6, 3.0, 0.1, 0.0]))
  image = reach_scene.render(scene, away).astype(int)
  for k, (colour, _) in enumerate(scene.objects):
    top = state.objects[k, :3] + [0, 0, scene.shape(k).height]
    x, y = (reach_scene.project(top[None])[0] / reach_scene.SUPERSAMPLE) // 1
    shown = image[int(y), int(x)]
    nearest = min(
      reach_scene.COLOURS,
      key=lambda name: np.abs(shown - reach_scene.COLOURS[name]).sum(),
    )
    assert nearest == colour


# ------------------------------------------------------------------- episodes

SETTINGS = {"train_episodes": 2, "val_episodes": 1, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_reach_episodes.make(tmp_path_factory.mktemp("reach"), **SETTINGS)


@pytest.fixture(scope="module")
def episodes(folder):
  """Every episode of both splits, each with its list of steps."""
  builder = tfds.builder_from_directory(folder)
  read = []
  for split in ("train", "val"):
    for episode in tfds.as_numpy(builder.as_dataset(split)):
      read.append({**episode, "steps": list(episode["steps"])})
  return read


def column(episode, *path):
  """One field of all steps, stacked: [T, ...]."""
  values = episode["steps"]
  for key in path:
    values = [value[key] for value in values]
  return np.array(values)


# RT-1's features: shape and dtype by name, as published.
STEP_SPEC = {
  "action/base_displacement_vector": ((2,), "float32"),
  "action/base_displacement_vertical_rotation": ((1,), "float32"),
  "action/gripper_closedness_action": ((1,), "float32"),
  "action/rotation_delta": ((3,), "float32"),
  "action/terminate_episode": ((3,), "int32"),
  "action/world_vector": ((3,), "float32"),
  "is_first": ((), "bool"),
  "is_last": ((), "bool"),
  "is_terminal": ((), "bool"),
  "observation/base_pose_tool_reached": ((7,), "float32"),
  "observation/gripper_closed": ((1,), "float32"),
  "observation/gripper_closedness_commanded": ((1,), "float32"),
  "observation/height_to_bottom": ((1,), "float32"),
  "observation/image": ((256, 320, 3), "uint8"),
  "observation/natural_language_embedding": ((512,), "float32"),
  "observation/natural_language_instruction": ((), "str"),
  "observation/orientation_box": ((2, 3), "float32"),
  "observation/orientation_start": ((4,), "float32"),
  "observation/robot_orientation_positions_box": ((3, 3), "float32"),
  "observation/rotation_delta_to_go": ((3,), "float32"),
  "observation/src_rotation": ((4,), "float32"),
  "observation/vector_to_go": ((3,), "float32"),
  "observation/workspace_bounds": ((3, 3), "float32"),
  "reward": ((), "float32"),
}
ASPECTS = "already_success feasible has_aspects success undesirable"
ATTRIBUTES = "collection_mode data_type env location objects_family task_family"


def flat_spec(features, prefix=""):
  """{path: (shape, dtype name)} of a dictionary of features."""
  spec = {}
  for name, feature in features.items():
    if isinstance(feature, tfds.features.FeaturesDict):
      spec |= flat_spec(feature, f"{prefix}{name}/")
    else:
      text = isinstance(feature, tfds.features.Text)
      dtype = "str" if text else np.dtype(feature.np_dtype).name
      spec[prefix + name] = (feature.shape, dtype)
  return spec


def test_features_are_those_of_rt1(folder):
  builder = tfds.builder_from_directory(folder)
  assert builder.info.full_name == "fractal20220817_data/0.1.0"
  features = builder.info.features
  assert set(features) == {"aspects", "attributes", "steps"}
  assert flat_spec(features["steps"].feature) == STEP_SPEC
  assert features["steps"].feature["observation"]["image"].encoding_format == (
    "jpeg"
  )
  bools = dict.fromkeys(ASPECTS.split(), ((), "bool"))
  assert flat_spec(features["aspects"]) == bools
  numbers = dict.fromkeys(ATTRIBUTES.split(), ((), "int64"))
  names = {f"{name}_name": ((), "str") for name in ATTRIBUTES.split()}
  assert flat_spec(features["attributes"]) == numbers | names


def test_splits_have_their_episodes(folder, episodes):
  splits = tfds.builder_from_directory(folder).info.splits
  assert {name: s.num_examples for name, s in splits.items()} == {
    "train": 2,
    "val": 1,
  }
  first_images = [e["steps"][0]["observation"]["image"] for e in episodes]
  assert not np.array_equal(first_images[0], first_images[2])


def test_state_moves_by_the_action(episodes):
  for episode in episodes:
    pose = column(episode, "observation", "base_pose_tool_reached")
    move = column(episode, "action", "world_vector")
    np.testing.assert_allclose(
      pose[:-1, :3] + move[:-1], pose[1:, :3], atol=1e-6
    )
    assert np.abs(move).max() <= 0.08
    yaw = 2 * np.arctan2(pose[:, 5], pose[:, 6])
    turn = column(episode, "action", "rotation_delta")
    np.testing.assert_allclose(yaw[:-1] + turn[:-1, 2], yaw[1:], atol=1e-6)
    assert np.abs(turn).max() < 0.4 + 1e-6 and not turn[:, :2].any()


def test_fingers_follow_the_gripper_action(episodes):
  for episode in episodes:
    grip = column(episode, "action", "gripper_closedness_action")[:, 0]
    closed = column(episode, "observation", "gripper_closed")[:, 0]
    assert set(grip) <= {-1, 0, 1} and 1 in grip
    expected = np.where(grip == 0, closed, grip > 0)
    np.testing.assert_array_equal(expected[:-1], closed[1:])


def test_only_the_last_step_ends_the_episode(episodes):
  for episode in episodes:
    last = np.arange(len(episode["steps"])) == len(episode["steps"]) - 1
    terminate = column(episode, "action", "terminate_episode")
    expected = np.where(last[:, None], [1, 0, 0], [0, 1, 0])
    np.testing.assert_array_equal(terminate, expected)
    for field in ("is_last", "is_terminal", "reward"):
      np.testing.assert_array_equal(column(episode, field), last)
    np.testing.assert_array_equal(column(episode, "is_first"), np.roll(last, 1))
    assert episode["aspects"]["success"]
    instructions = column(
      episode, "observation", "natural_language_instruction"
    )
    assert len(set(instructions)) == 1
    assert instructions[0].decode().split()[0] in ("pick", "move")


def action_bytes(number, seed):
  episode = make_reach_episodes.episode(np.random.default_rng([seed, number]))
  return b"".join(
    value.tobytes()
    for step in episode["steps"]
    for _, value in sorted(step["action"].items())
  )


def test_an_episode_is_a_pure_function_of_its_seed():
  assert action_bytes(1, seed=5) == action_bytes(1, seed=5)
  assert action_bytes(1, seed=5) != action_bytes(1, seed=6)
  assert action_bytes(1, seed=5) != action_bytes(2, seed=5)


def test_writing_again_needs_the_same_settings(folder, capsys):
  output_dir = folder.parent.parent
  before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
  make_reach_episodes.make(output_dir, **SETTINGS)
  assert "already" in capsys.readouterr().out
  with pytest.raises(
    FileExistsError, match=r"'seed': 5.*'seed': 6.*output_dir"
  ):
    make_reach_episodes.make(output_dir, **(SETTINGS | {"seed": 6}))
  after = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
  assert before == after


def test_a_folder_of_another_origin_is_refused(tmp_path):
  folder = tmp_path / "fractal20220817_data" / "0.1.0"
  folder.mkdir(parents=True)
  with pytest.raises(FileExistsError, match="another program"):
    make_reach_episodes.make(tmp_path, **SETTINGS)


def test_the_quaternion_is_a_rotation_about_z():
  scene, state = reach_scene.sample(np.random.default_rng(1))
  state = state._replace(gripper=np.array([0.6, 0.0, 0.1, math.pi / 2]))
  observation = make_reach_episodes.observation_fields(scene, state)
  half = math.sqrt(0.5)
  np.testing.assert_allclose(
    observation["base_pose_tool_reached"], [0.6, 0, 0.1, 0, 0, half, half]
  )

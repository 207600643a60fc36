"""The programs of data/: the committed tokenizer and the made-up episodes."""

import numpy as np
import pytest
import sentencepiece
import tensorflow_datasets as tfds

from data import make_rt1_episodes, make_tokenizer, tokenizer_corpus
from rt2_jax.errors import UserError

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
  sentences = tokenizer_corpus.corpus()
  if tokenizer_corpus.fingerprint(sentences) != COMMITTED_CORPUS:
    pytest.skip("this Python's language reference differs from 3.11.7's")
  again = sentencepiece.SentencePieceProcessor(
    model_proto=make_tokenizer.train(sentences)
  )
  assert [again.id_to_piece(i) for i in range(2048)] == [
    tokenizer.id_to_piece(i) for i in range(2048)
  ]


# ------------------------------------------------------------------- episodes

SETTINGS = {"train_episodes": 2, "val_episodes": 1, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_rt1_episodes.make(tmp_path_factory.mktemp("rt1"), **SETTINGS)


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
    assert 1e-3 < np.abs(move).max() < 0.06
    yaw = 2 * np.arctan2(pose[:, 5], pose[:, 6])
    turn = column(episode, "action", "rotation_delta")
    np.testing.assert_allclose(yaw[:-1] + turn[:-1, 2], yaw[1:], atol=1e-6)
    assert np.abs(turn).max() < 0.28 and not turn[:, :2].any()


def test_only_the_last_step_ends_the_episode(episodes):
  for episode in episodes:
    last = np.arange(len(episode["steps"])) == len(episode["steps"]) - 1
    terminate = column(episode, "action", "terminate_episode")
    expected = np.where(last[:, None], [1, 0, 0], [0, 1, 0])
    np.testing.assert_array_equal(terminate, expected)
    for field in ("is_last", "is_terminal", "reward"):
      np.testing.assert_array_equal(column(episode, field), last)
    np.testing.assert_array_equal(column(episode, "is_first"), np.roll(last, 1))
    grip = column(episode, "action", "gripper_closedness_action")[:, 0]
    np.testing.assert_array_equal(np.flatnonzero(grip), [len(last) // 2])


def test_images_are_as_grainy_as_they_say():
  """The noise is what neighbouring pixels of a smooth texture differ by."""

  def grain(noise):
    made = make_rt1_episodes.episode(np.random.default_rng(0), 3, noise)
    images = [step["observation"]["image"] for step in made["steps"]]
    assert len({image.tobytes() for image in images}) == 3
    middle = np.stack(images).astype(float)
    middle[(middle < 20) | (middle > 235)] = np.nan  # clipped
    second = middle[:, :, 2:] - 2 * middle[:, :, 1:-1] + middle[:, :, :-2]
    return np.nanstd(second) / np.sqrt(6)

  assert grain(0.0) < 1.0
  assert grain(4.0) == pytest.approx(4.0, rel=0.1)
  assert grain(8.0) == pytest.approx(8.0, rel=0.1)


def episode_bytes(number, seed):
  made = make_rt1_episodes.episode(np.random.default_rng([seed, number]), 4)
  return b"".join(
    value.tobytes()
    for step in made["steps"]
    for value in (*step["action"].values(), step["observation"]["image"])
  )


def test_an_episode_is_a_pure_function_of_its_seed():
  assert episode_bytes(1, seed=5) == episode_bytes(1, seed=5)
  assert episode_bytes(1, seed=5) != episode_bytes(1, seed=6)
  assert episode_bytes(1, seed=5) != episode_bytes(2, seed=5)


def test_writing_again_needs_the_same_settings(folder, capsys):
  output_dir = folder.parent.parent
  before = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
  make_rt1_episodes.make(output_dir, **SETTINGS)
  assert "already" in capsys.readouterr().out
  with pytest.raises(UserError, match=r"seed is 6, was 5.*output_dir"):
    make_rt1_episodes.make(output_dir, **(SETTINGS | {"seed": 6}))
  after = sorted((p.name, p.stat().st_mtime_ns) for p in folder.iterdir())
  assert before == after


def test_a_folder_of_another_origin_is_refused(tmp_path):
  folder = tmp_path / "fractal20220817_data" / "0.1.0"
  folder.mkdir(parents=True)
  with pytest.raises(UserError, match="another program"):
    make_rt1_episodes.make(tmp_path, **SETTINGS)

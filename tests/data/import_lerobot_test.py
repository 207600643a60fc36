"""LeRobot folders of three versions become what PyArrow and PyAV read."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import tensorflow_datasets as tfds

from data import import_lerobot, import_program
from data.episode_shards import ShardWriter
from data.import_program import Options
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.examples import open_robot
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from rt2_jax.prompt import Prompt
from tests import tiny_datasets
from tests.data import tiny_robots
from tests.data.tiny_robots import CAMERAS, RATE, TASKS, TWO_ARMS

CHOSEN = (f"primary={CAMERAS[0]}", f"wrist={CAMERAS[1]}")
GRIPPERS = ("left_gripper=100:0", "right_gripper=100:0")
OPTIONS = Options("two_arms", num_workers=1, gripper=GRIPPERS, unit="rad")
LENGTHS = (7, 5, 6)


def imported(root, output, options=OPTIONS, **places):
  recordings = import_lerobot.open_recordings(str(root), CHOSEN, **places)
  return import_program.import_recordings(recordings, output, options)


def opened(folder, split="train"):
  """The folder through the library's own reader."""
  config = SourceConfig("robot.json", str(folder))
  spec = ObservationSpec(cameras=("primary", "wrist"))
  spec = config.observation_spec(spec, True)
  return config, open_source(config, split, spec)


def rows_and_frames(root, version):
  """All rows by PyArrow, all frames of both cameras by PyAV."""
  rows = [
    row
    for path in sorted((root / "data").rglob("*.parquet"))
    for row in pq.read_table(path).to_pylist()
  ]
  frames = []
  for camera in CAMERAS:
    places = f"*/{camera}/*.mp4" if version < "v3" else f"{camera}/*/*.mp4"
    paths = sorted((root / "videos").glob(places))
    frames.append([f for path in paths for f in tiny_robots.read_video(path)])
  return rows, list(zip(*frames, strict=True))


@pytest.mark.parametrize(
  ("version", "codec"),
  [("v2.0", "libx264"), ("v2.1", "libsvtav1"), ("v3.0", "libx264")],
)
def test_every_number_text_and_frame_is_the_recorded_one(
  tmp_path, version, codec
):
  root = tiny_robots.write_lerobot(tmp_path / "in", version, LENGTHS, codec)
  options = OPTIONS._replace(episodes_per_shard=2)
  folder = imported(root, tmp_path / "out", options)
  config, source = opened(folder)
  rows, frames = rows_and_frames(root, version)
  assert len(source) == len(rows) == sum(LENGTHS)
  action = np.float32([row["action"] for row in rows])
  grippers = [TWO_ARMS.index(f"{side}_gripper") for side in ("left", "right")]
  joints = np.setdiff1d(np.arange(26), grippers)
  found = source.index.action
  np.testing.assert_array_equal(found[:, 1:][:, joints], action[:, joints])
  np.testing.assert_allclose(
    found[:, 1:][:, grippers], action[:, grippers] / 100, atol=1e-6
  )
  np.testing.assert_array_equal(
    np.flatnonzero(found[:, 0]), np.cumsum(LENGTHS) - 1
  )
  state = np.float32([row["observation.state"] for row in rows])
  np.testing.assert_array_equal(source.index.state[:, joints], state[:, joints])
  for i, (row, pictures) in enumerate(zip(rows, frames, strict=True)):
    assert source.instruction(i) == TASKS[row["task_index"]]
    stored = source.storage.read(source.requests([i])[0])
    assert stored == [
      simplejpeg.encode_jpeg(picture, quality=95) for picture in pictures
    ]
  assert config.space.names == ("terminate", *TWO_ARMS)
  assert config.robot.rate_hz == RATE
  # TFDS reads the folder too.
  builder = tfds.builder_from_directory(folder)
  assert builder.info.splits["train"].num_examples == len(LENGTHS)
  (episode,) = builder.as_dataset("train[1:2]")
  steps = list(episode["steps"])
  assert [bool(step["is_last"]) for step in steps] == [False] * 4 + [True]
  np.testing.assert_array_equal(steps[2]["action"], action[LENGTHS[0] + 2])
  assert float(steps[2]["timestamp"]) == pytest.approx(0.2)


def test_two_arms_learn_chunks_of_eight_from_two_cameras_and_a_state(
  tmp_path, tokenizer
):
  """26 numbers and terminate, eight times, in one answer."""
  root = tiny_robots.write_lerobot(tmp_path / "in", "v3.0", (10, 4))
  config, source = opened(imported(root, tmp_path / "out"))
  actions = ActionTokenizer(
    config.space, tokenizer.action_route("rare"), horizon=8
  )
  template = "Q: what should the robot do to {instruction}? State: {state} A:"
  prompt = Prompt(tokenizer, 56, 27 * 8 + 1, template=template)
  spec = ObservationSpec(cameras=("primary", "wrist"))
  spec = config.observation_spec(spec, True)
  examples = open_robot(config, "train", actions, prompt, spec, "", 0)
  half_bins = [(d.high - d.low) / 512 for d in config.space.dimensions]
  recorded = source.index.action.clip(
    [d.low for d in config.space.dimensions],
    [d.high for d in config.space.dimensions],
  )
  for i in (0, 5, 9, 13):
    data = source.storage.read(source.requests([i])[0])
    row = tiny_datasets.row(examples, i, 0, data)
    assert len(row.images) == 2 and row.mask_loss.sum() == 27 * 8 + 1
    chunk = actions.decode(row.suffix[:-1])
    inside = min(8, (10 if i < 10 else 14) - i)
    error = np.abs(chunk[:inside] - recorded[i : i + inside])
    assert (error <= np.add(half_bins, 1e-5)).all()
    # After the end: terminate, and everything else stays as it was.
    assert (chunk[inside:, 0] == 1).all()
    assert (chunk[inside:, 1:] == chunk[inside - 1, 1:]).all()
    state = tokenizer.decode(row.prefix[row.mask_input])
    assert "towel" in state or "drawer" in state


@pytest.fixture
def root(tmp_path):
  return tiny_robots.write_lerobot(tmp_path / "in", "v2.1", LENGTHS)


def test_videos_that_are_missing_or_short_are_named(tmp_path, root):
  folder = root / f"videos/chunk-000/{CAMERAS[1]}"
  (folder / "episode_000000.mp4").unlink()
  with pytest.raises(UserError, match="episode 0: .*wrist/episode_000000.mp4"):
    imported(root, tmp_path / "out")
  short = folder / "episode_000002.mp4"
  tiny_robots.write_video(short, tiny_robots.pictures(0, 4), "libx264")
  with pytest.raises(UserError, match=r"000002.mp4.*at 0.400 s.*0.300 s"):
    imported(root, tmp_path / "out", OPTIONS._replace(max_skipped=1))
  options = OPTIONS._replace(max_skipped=2)
  _, source = opened(imported(root, tmp_path / "out", options))
  assert len(source) == LENGTHS[1]
  assert source.instruction(0) == TASKS[1]


def test_a_camera_without_a_video_is_no_damage(tmp_path, root):
  """As in the sets of some: info.json names a camera that nobody recorded."""
  shutil.rmtree(root / f"videos/chunk-000/{CAMERAS[1]}")
  options = OPTIONS._replace(max_skipped=len(LENGTHS))
  with pytest.raises(UserError, match=f"no video of {CAMERAS[1]}.*--cameras"):
    imported(root, tmp_path / "out", options)
  recordings = import_lerobot.open_recordings(
    str(root), [f"primary={CAMERAS[0]}"]
  )
  folder = import_program.import_recordings(recordings, tmp_path, OPTIONS)
  assert (
    len(open_source(SourceConfig("robot.json", str(folder)), "train")) == 18
  )


def test_stamps_that_begin_late_are_matched_from_the_start(tmp_path, capsys):
  """As some recordings have them; nothing else would fit the video."""
  root = tiny_robots.write_lerobot(tmp_path / "in", "v2.0", (5,), start=0.1)
  folder = imported(root, tmp_path / "out")
  assert "begin at 0.100 s" in capsys.readouterr().out
  _, source = opened(folder)
  path = root / f"videos/chunk-000/{CAMERAS[0]}/episode_000000.mp4"
  frames = tiny_robots.read_video(path)
  for i, frame in enumerate(frames):
    first, _ = source.storage.read(source.requests([i])[0])
    assert first == simplejpeg.encode_jpeg(frame, quality=95)


@pytest.mark.parametrize(
  ("stamp", "told"), [(float("nan"), "nan in step 0"), (None, "'timestamp'")]
)
def test_a_step_without_a_time_has_no_frame(tmp_path, root, stamp, told):
  """The last frame would stand for every step."""
  path = root / "data/chunk-000/episode_000001.parquet"
  table = pq.read_table(path)
  stamps = pa.array([stamp] * table.num_rows, pa.float32())
  position = table.column_names.index("timestamp")
  pq.write_table(table.set_column(position, "timestamp", stamps), path)
  with pytest.raises(UserError, match=f"episode 1: .*{told}"):
    imported(root, tmp_path / "out")


def test_pictures_in_the_table_may_be_missing(tmp_path, root):
  """An image feature; one picture of episode 1 is null."""
  path = root / "meta/info.json"
  info = json.loads(path.read_text())
  info["features"]["front"] = {"dtype": "image", "shape": [48, 64, 3]}
  path.write_text(json.dumps(info))
  files = []
  for e, length in enumerate(LENGTHS):
    files.append([tiny_datasets.jpeg(10 * e + t) for t in range(length)])
    rows = [{"bytes": data, "path": "x"} for data in files[-1]]
    rows[2] = rows[2] if e != 1 else None
    path = root / f"data/chunk-000/episode_{e:06d}.parquet"
    table = pq.read_table(path).append_column("front", pa.array(rows))
    pq.write_table(table, path)
  recordings = import_lerobot.open_recordings(str(root), ["primary=front"])
  with pytest.raises(UserError, match="episode 1: got None .*front"):
    import_program.import_recordings(recordings, tmp_path, OPTIONS)
  options = OPTIONS._replace(max_skipped=1)
  folder = import_program.import_recordings(recordings, tmp_path, options)
  source = open_source(SourceConfig("robot.json", str(folder)), "train")
  found = [source.storage.read(each)[0] for each in source.requests(range(13))]
  assert found == files[0] + files[2]


def test_frames_follow_the_stamps_and_not_their_number(tmp_path, root):
  """A row that was left out takes its frame along."""
  path = root / "data/chunk-000/episode_000000.parquet"
  table = pq.read_table(path)
  kept = [0, 1, 4, 6]
  pq.write_table(table.take(kept), path)
  lines = (root / "meta/episodes.jsonl").read_text()
  (root / "meta/episodes.jsonl").write_text(
    lines.replace('"length": 7', '"length": 4')
  )
  _, source = opened(imported(root, tmp_path / "out"))
  video = root / f"videos/chunk-000/{CAMERAS[0]}/episode_000000.mp4"
  frames = tiny_robots.read_video(video)
  for i, frame in enumerate(kept):
    first, _ = source.storage.read(source.requests([i])[0])
    assert first == simplejpeg.encode_jpeg(frames[frame], quality=95)


def test_a_stopped_import_goes_on(tmp_path, root, monkeypatch):
  """What was finished is not written again; the result is the same."""
  options = OPTIONS._replace(episodes_per_shard=1, val_every=3)
  whole = imported(root, tmp_path / "whole", options)
  read, seen = import_lerobot.LeRobotRecordings.read, []

  def stops(self, number):
    seen.append(number)
    if len(seen) == 2:
      raise KeyboardInterrupt
    return read(self, number)

  monkeypatch.setattr(import_lerobot.LeRobotRecordings, "read", stops)
  with pytest.raises(KeyboardInterrupt):
    imported(root, tmp_path / "out", options)
  (unfinished,) = (tmp_path / "out/two_arms").iterdir()
  (unfinished / ".train-00001.7.unfinished").write_bytes(b"of a killed process")
  folder = imported(root, tmp_path / "out", options)
  assert seen == [0, 1, 1, 2]
  files = {path.name: path.read_bytes() for path in whole.iterdir()}
  assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
  assert len(opened(folder)[1]) == LENGTHS[0] + LENGTHS[1]
  assert len(opened(folder, "val")[1]) == LENGTHS[2]
  # Once more changes nothing, and other settings are refused.
  assert imported(root, tmp_path / "out", options) == folder
  assert seen == [0, 1, 1, 2]
  with pytest.raises(UserError, match="jpeg_quality is 80, was 95"):
    imported(root, tmp_path / "out", options._replace(jpeg_quality=80))


def test_sizes_and_quality_are_those_of_the_flags(tmp_path, root):
  options = OPTIONS._replace(image_size="24x40", jpeg_quality=50)
  _, source = opened(imported(root, tmp_path / "out", options))
  first, second = source.storage.read(source.requests([0])[0])
  for data in (first, second):
    assert simplejpeg.decode_jpeg_header(data)[:2] == (24, 40)
  assert len(first) < 1500


def test_bounds_are_percentiles_and_grippers_hold_what_was_recorded(
  tmp_path, root
):
  rows, _ = rows_and_frames(root, "v2.1")
  action = np.float32([row["action"] for row in rows])
  i = TWO_ARMS.index("left_gripper")
  state = np.float32([row["observation.state"] for row in rows])
  both = np.concatenate([action[:, i], state[:, i]])
  ends = f"left_gripper={both.max() - 1}:{both.min() + 2}"
  folder = imported(root, tmp_path / "out", OPTIONS._replace(gripper=(ends,)))
  fields = json.loads((folder / "robot.json").read_text())
  assert fields["action"][i]["gripper"] == {
    "open": pytest.approx(max(both.max() - 1, action[:, i].max())),
    "closed": pytest.approx(min(both.min() + 2, action[:, i].min())),
  }
  for i in (0, 25):
    low, high = np.quantile(action[:, i], [0.01, 0.99])
    found = fields["action"][i]
    assert (found["name"], found["column"]) == (TWO_ARMS[i], i)
    assert [found["low"], found["high"]] == pytest.approx([low, high], rel=1e-5)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"gripper": ("left_gripper=1:0",)}, "for gripper 'left_gripper'"),
    ({"gripper": ("left_griper=1:0",)}, "did you mean 'left_gripper'"),
    ({"gripper": ("left_gripper",)}, "--gripper="),
    ({"gripper": ("left=1:0,right=1:0",)}, "repeat the flag for each gripper"),
    ({"units": ("left_gripper=",)}, "--units="),
    ({"image_size": "224"}, "HEIGHTxWIDTH"),
    ({"image_size": "0x224"}, "0 x 224"),
    ({"image_size": "99999x224"}, "99999 x 224"),
    ({"val_every": 1}, "--val_every=1"),
    ({"name": "My arm"}, "--name"),
    ({"robot": "nowhere.json"}, "--robot"),
  ],
)
def test_flags_that_do_not_fit_are_named(tmp_path, root, change, told):
  with pytest.raises(UserError, match=told):
    imported(root, tmp_path / "out", OPTIONS._replace(**change))


def test_features_and_versions_that_are_unknown_are_named(root):
  for places, told in (
    ({"action": "actoin"}, "did you mean 'action'"),
    ({"state": ["observation.pose"]}, "observation.pose"),
  ):
    with pytest.raises(UserError, match=told):
      import_lerobot.open_recordings(str(root), **places)
  with pytest.raises(UserError, match="top"):
    import_lerobot.open_recordings(str(root), ["primary=observation.top"])
  info = (root / "meta/info.json").read_text()
  (root / "meta/info.json").write_text(info.replace("v2.1", "v1.6"))
  with pytest.raises(UserError, match=r"v1.6, expected v2.0"):
    import_lerobot.open_recordings(str(root))


@pytest.mark.parametrize(
  ("version", "file", "change"),
  [
    ("v2.1", "info.json", lambda b: b.replace(b'"fps"', b'"hz"')),
    ("v2.1", "info.json", lambda b: b.replace(b'"fps": 10', b'"fps": 0')),
    ("v2.1", "info.json", lambda b: b.replace(b'"data_path"', b'"path"')),
    ("v2.1", "info.json", lambda b: b.replace(b'"features"', b'"feature"')),
    ("v2.1", "info.json", lambda b: b.replace(b'"shape"', b'"size"')),
    ("v2.1", "info.json", lambda _: b"[]"),
    ("v2.1", "tasks.jsonl", lambda b: b.replace(b"towel", b"T\xfcr")),
    ("v2.1", "tasks.jsonl", lambda b: b.replace(b'"task":', b'"text":')),
    ("v2.1", "episodes.jsonl", lambda _: b'{"length": 7}'),
    ("v3.0", "tasks.parquet", lambda _: b"PAR1 cut off"),
    ("v3.0", "episodes/chunk-000/file-000.parquet", lambda _: b"PAR1"),
  ],
)
def test_files_that_are_not_lerobots_are_named(tmp_path, version, file, change):
  root = tiny_robots.write_lerobot(tmp_path / "in", version)
  path = root / "meta" / file
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(UserError, match="meta: got files that are not"):
    import_lerobot.open_recordings(str(root))


def test_a_text_may_hold_any_line_separator(root):
  path = root / "meta/tasks.jsonl"
  text = path.read_text().replace("fold the", "fold\u2028the")
  path.write_text(text, encoding="utf-8")
  found = import_lerobot.open_recordings(str(root))
  assert found.folder.tasks[0] == "fold\u2028the towel"


def test_an_episode_that_is_listed_twice(root):
  path = root / "meta/episodes.jsonl"
  first, *others = path.read_text().splitlines()
  path.write_text("\n".join([first, *others, first]))
  found = import_lerobot.open_recordings(str(root))
  assert len(found.names) == len(LENGTHS)
  path.write_text("\n".join([first, *others, first.replace("7", "6")]))
  with pytest.raises(UserError, match="two lines of episode 0.* 7.* 6"):
    import_lerobot.open_recordings(str(root))


def test_writers_travel_to_other_processes(tmp_path, root):
  recordings = import_lerobot.open_recordings(str(root), CHOSEN)
  writer = ShardWriter(recordings, None, None, tmp_path)
  assert pickle.loads(pickle.dumps(writer)) == writer


def test_another_folder_is_not_taken_for_a_damaged_one(tmp_path):
  with pytest.raises(UserError) as error:
    import_lerobot.open_recordings(str(tmp_path))
  expected = f"got no file {tmp_path}/meta/info.json, expected a LeRobot folder"
  assert str(error.value) == expected

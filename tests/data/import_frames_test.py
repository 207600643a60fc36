"""Folders of pictures and arrays become what they hold."""

import csv
import os
import tempfile
import types

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image

from data import import_flags, import_frames, import_program
from data.import_program import Options
from data.recordings import choose_cameras
from data.tfds_writer import METADATA
from rt2_jax import local_copies
from rt2_jax.errors import UserError
from rt2_jax.images import decode
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from tests.data import tiny_robots

OPTIONS = Options("desk", num_workers=1)
ACTION, STATE = ["dx", "dy", "grip"], ["x", "y"]
STAMPS = np.array([7.0, 7.2, 7.5, 7.6])


def write_csv(path, names, values):
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows(values.tolist())


def write_episode(folder, seed, length=4):
  """One camera as PNG and JPEG files, another as an array."""
  (folder / "front").mkdir(parents=True)
  rng = np.random.default_rng(seed)
  action, state = rng.uniform(size=(length, 3)), rng.uniform(size=(length, 2))
  write_csv(folder / "action.csv", ACTION, action)
  np.save(folder / "state.npy", state)
  frames = tiny_robots.pictures(seed, length)
  for t, frame in enumerate(frames):
    # frame_9 comes before frame_10.
    kind = "png" if t % 2 else "jpg"
    Image.fromarray(frame).save(folder / f"front/frame_{8 + t}.{kind}")
  (folder / "front/._frame_8.jpg").write_bytes(b"of macOS")
  np.save(folder / "wrist.npy", frames[:, ::2])
  (folder / "instruction.txt").write_text("\ufeffwipe the desk\r\n", "utf-8")
  return action, state, frames


def imported(tmp_path, options=OPTIONS, **flags):
  recordings = import_frames.open_recordings(str(tmp_path / "in"), 5.0, **flags)
  folder = import_program.import_recordings(
    recordings, tmp_path / "out", options
  )
  config = SourceConfig("robot.json", str(folder))
  spec = ObservationSpec(cameras=("primary", "wrist"))
  spec = config.observation_spec(spec, True)
  return config, open_source(config, "train", spec)


def test_numbers_texts_and_pictures_are_those_of_the_folders(tmp_path):
  written = [write_episode(tmp_path / f"in/day_1/run_{n}", n) for n in (2, 10)]
  config, source = imported(tmp_path)
  assert config.space.names == ("terminate", *ACTION)
  for e, (action, state, frames) in enumerate(written):
    span = slice(4 * e, 4 * e + 4)
    np.testing.assert_array_equal(
      source.index.action[span, 1:], np.float32(action)
    )
    np.testing.assert_array_equal(source.index.state[span], np.float32(state))
    for t in range(4):
      front, wrist = source.storage.read(source.requests([4 * e + t])[0])
      expected = simplejpeg.encode_jpeg(
        np.ascontiguousarray(frames[t, ::2]), quality=95
      )
      assert wrist == expected
      folder = tmp_path / f"in/day_1/run_{(2, 10)[e]}/front"
      if t % 2:
        assert front == simplejpeg.encode_jpeg(frames[t], quality=95)
      else:  # a JPEG stays as it is
        assert front == (folder / f"frame_{8 + t}.jpg").read_bytes()
  assert source.instruction(5) == "wipe the desk"


def test_a_picture_that_was_stored_turned_stands_upright(tmp_path):
  _, _, frames = write_episode(tmp_path / "in/a", 0)
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  path = tmp_path / "in/a/front/frame_8.jpg"
  Image.fromarray(frames[0, ::-1, ::-1]).save(path, exif=exif, quality=100)
  _, source = imported(tmp_path)
  first, _ = source.storage.read(source.requests([0])[0])
  difference = np.abs(decode(first).astype(int) - frames[0])
  assert difference.mean() < 4


def test_a_description_of_another_form_is_refused_at_the_start(tmp_path):
  write_episode(tmp_path / "in/a", 0)
  path = tmp_path / "mine.json"
  path.write_text('{"rate": 5}')
  with pytest.raises(UserError, match=r"'rate' .*mine\.json"):
    imported(tmp_path, OPTIONS._replace(robot=str(path)))
  assert not (tmp_path / "out").exists()


def test_texts_and_stamps_of_each_step(tmp_path):
  write_episode(tmp_path / "in/a", 0)
  lines = ["reach", "grasp", "lift", "lift"]
  (tmp_path / "in/a/instruction.txt").write_text("\n".join(lines))
  _, source = imported(tmp_path)
  assert [source.instruction(i) for i in range(4)] == lines


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_stamps_in_seconds(tmp_path, shape):
  write_episode(tmp_path / "in/a", 0)
  np.save(tmp_path / "in/a/timestamp.npy", STAMPS.reshape(shape))
  imported(tmp_path)
  builder = tfds.builder_from_directory(tmp_path / "out/desk/1.0.0")
  (episode,) = builder.as_dataset("train")
  stamps = [float(step["timestamp"]) for step in episode["steps"]]
  np.testing.assert_allclose(stamps, [0.0, 0.2, 0.5, 0.6], rtol=1e-6)


def damage_width(folder):
  write_csv(folder / "action.csv", ACTION[:2], np.zeros((4, 2)))


def damage_number(folder):
  action = np.zeros((4, 3))
  action[2, 1] = np.nan
  write_csv(folder / "action.csv", ACTION, action)


def damage_cell(folder):
  write_csv(folder / "action.csv", ACTION, np.array([["1", "2", "three"]] * 4))


@pytest.mark.parametrize(
  ("damage", "told"),
  [
    (lambda f: (f / "front/frame_9.png").unlink(), "3 pictures of primary"),
    (
      lambda f: (f / "wrist.npy").unlink(),
      "(no|0) pictures of wrist",
    ),
    (lambda f: (f / "instruction.txt").unlink(), "--instruction"),
    (lambda f: (f / "instruction.txt").write_bytes(b"\xff\xff"), "UTF-8"),
    (lambda f: (f / "instruction.txt").write_text("a\nb"), "2 lines"),
    (lambda f: np.save(f / "state.npy", np.zeros((3, 2))), "3 states"),
    (lambda f: np.save(f / "state.npy", np.zeros((0, 2))), "0 states"),
    (lambda f: np.save(f / "state.npy", np.zeros(())), "state.npy"),
    (lambda f: np.save(f / "state.npy", np.full((4, 2), "a")), "state.npy"),
    (lambda f: (f / "state.npy").write_bytes(b"x"), "state.npy"),
    (lambda f: os.truncate(f / "wrist.npy", 1000), "wrist.npy"),
    (lambda f: np.save(f / "timestamp.npy", STAMPS[:3]), "3 time stamps"),
    (
      lambda f: np.save(f / "timestamp.npy", STAMPS.astype("M8[s]")),
      "timestamp.npy",
    ),
    (
      lambda f: (f / "front/frame_8.jpg").write_bytes(b"\xff\xd8\xff cut"),
      "does not decode|do not decode",
    ),
    (damage_width, "dx, dy, grip"),
    (damage_number, "nan in step 2, number 1 of the action"),
    (damage_cell, "action.csv"),
  ],
)
def test_a_damaged_episode_is_named_and_may_be_left_out(tmp_path, damage, told):
  for name in ("a", "b"):
    write_episode(tmp_path / "in" / name, ord(name))
  damage(tmp_path / "in/b")
  with pytest.raises(UserError, match=f"b: (.|\n)*({told})"):
    imported(tmp_path)
  _, source = imported(tmp_path, OPTIONS._replace(max_skipped=1))
  assert len(source) == 4


def test_another_input_or_meaning_is_not_taken_for_the_finished_one(tmp_path):
  """Same names, numbers and count; the description is stated by flags too."""
  write_episode(tmp_path / "in/a", 1)
  options = OPTIONS._replace(source={"input": "first"})
  imported(tmp_path, options)
  imported(tmp_path, options)
  for changed, told in (
    (options._replace(source={"input": "second"}), "input is 'second'"),
    (options._replace(gripper=["grip=1:0"]), "gripper is .*grip=1:0"),
    (options._replace(unit="rad"), "unit is 'rad'"),
  ):
    with pytest.raises(UserError, match=told):
      imported(tmp_path, changed)


def test_a_stopped_upload_goes_on(tmp_path, monkeypatch):
  """Nothing is read again, and no copy is left on this machine."""
  write_episode(tmp_path / "in/a", 1)
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
  (tmp_path / "temporary").mkdir()
  recordings = import_frames.open_recordings(str(tmp_path / "in"), 5.0)
  publish = local_copies.publish

  def stops(made, target):
    publish(made / METADATA, target / METADATA)
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(local_copies, "publish", stops)
    with pytest.raises(KeyboardInterrupt):
      import_program.import_recordings(recordings, "memory://up", OPTIONS)
  with monkeypatch.context() as patched:
    patched.setattr(tempfile, "tempdir", str(tmp_path))  # another machine's
    with pytest.raises(UserError, match="a part of .* holds no dataset_info"):
      import_program.import_recordings(recordings, "memory://up", OPTIONS)
  with monkeypatch.context() as patched:
    patched.setattr(import_frames.FrameRecordings, "read", None)
    for _ in range(2):
      folder = import_program.import_recordings(
        recordings, "memory://up", OPTIONS
      )
  config = SourceConfig("robot.json", str(folder))
  assert len(open_source(config, "train")) == 4
  (folder / "robot.json").unlink()
  with pytest.raises(UserError, match=r"a part of .*got no robot\.json"):
    import_program.import_recordings(recordings, "memory://up", OPTIONS)
  assert not any((tmp_path / "temporary").iterdir())


def test_a_corrected_gripper_goes_on_with_the_records(tmp_path, monkeypatch):
  write_episode(tmp_path / "in/a", 1)
  with pytest.raises(UserError, match="correct --gripper=grip"):
    imported(tmp_path, OPTIONS._replace(gripper=["grip=0.1:0"]))
  monkeypatch.setattr(import_frames.FrameRecordings, "read", None)
  config, _ = imported(tmp_path, OPTIONS._replace(gripper=["grip=1:0"]))
  assert config.space.dimensions[-1].unit == "open"


def test_action_and_state_may_have_a_number_of_one_name(tmp_path):
  """Arrays have no names: number_1 is a gripper in the action alone."""
  folder = tmp_path / "in/a"
  write_episode(folder, 1)
  (folder / "action.csv").unlink()
  np.save(folder / "action.npy", np.array([[0.5, 0], [0, 1], [1, 1], [0, 0]]))
  np.save(folder / "state.npy", np.linspace(-3, 3, 12).reshape(4, 3))
  with pytest.raises(UserError, match="action.number_1 or state.number_1"):
    imported(tmp_path, OPTIONS._replace(gripper=["number_1=1:0"]))
  options = OPTIONS._replace(
    gripper=["action.number_1=1:0"], units=["number_1=rad", "state.number_2=m"]
  )
  config, _ = imported(tmp_path, options)
  assert [d.unit for d in config.space.dimensions] == [
    *("yes/no", "as recorded", "open")
  ]
  assert [d.unit for d in config.robot.state.space.dimensions] == [
    *("as recorded", "rad", "m")
  ]


def test_a_gripper_may_open_widest_in_validation(tmp_path):
  """In no split, and by no rounding, a number lies beyond its ends."""
  for n, most in enumerate((3412.344, 3415.436)):
    write_episode(tmp_path / f"in/{n}", n)
    action = np.zeros((4, 3))
    action[:, 2] = np.linspace(2000, most, 4)
    write_csv(tmp_path / f"in/{n}/action.csv", ACTION, action)
  options = OPTIONS._replace(gripper=["grip=3400:2000"], val_every=2)
  config, train = imported(tmp_path, options)
  val = open_source(config, "val")
  assert train.index.action[:, -1].max() == pytest.approx(
    (np.float32(3412.344) - 2000) / (np.float32(3415.436) - 2000)
  )
  assert val.index.action[-1, -1] == 1


@pytest.mark.parametrize(
  ("names", "is_good"),
  [
    (["0.25", "-1", "3e-2"], False),  # without a line of names
    (["x", "x", "y"], False),
    (["", "x", "y"], False),  # pandas' index
    (["0", "1", "2"], True),  # pandas' own names
    (["1", "0", "nan"], False),
    (["größe", "x.pos", "-"], True),
  ],
)
def test_a_table_begins_with_names(tmp_path, names, is_good):
  write_episode(tmp_path / "in/a", 1)
  write_csv(tmp_path / "in/a/action.csv", names, np.ones((4, 3)))
  if is_good:
    config, _ = imported(tmp_path)
    assert config.space.names[1:] == tuple(names)
    return
  with pytest.raises(UserError, match="action.csv.*names each column"):
    imported(tmp_path)


def test_episodes_follow_the_numbers_in_their_names(tmp_path):
  names = ["run 2", "run 10", "run 10²"]
  for n, name in enumerate(reversed(names)):
    write_episode(tmp_path / "in" / name, n)
  found = import_frames.open_recordings(str(tmp_path / "in"), 5.0)
  assert found.names == names


@pytest.mark.parametrize(
  ("found", "named"),
  [
    (["left", "primary"], ["primary=primary", "left=left"]),
    (["a.left", "a.primary"], ["primary=a.primary", "left=a.left"]),
    (["x.primary", "primary"], ["primary=primary", "x.primary=x.primary"]),
    (
      ["left/image", "right/image"],
      ["primary=left/image", "image=right/image"],
    ),
    (["a/x", "b/x", "c/x"], ["primary=a/x", "b/x=b/x", "c/x=c/x"]),
  ],
)
def test_no_camera_is_lost_for_want_of_a_name(found, named):
  cameras = choose_cameras(found)
  assert [f"{name}={camera}" for name, camera in cameras.items()] == named


def test_a_camera_name_stands_once():
  with pytest.raises(UserError, match="'primary' stands there twice"):
    choose_cameras(["a", "b"], ["primary=a", "primary=b"])


def test_hidden_folders_hold_no_episode(tmp_path):
  write_episode(tmp_path / "in/a", 1)
  write_episode(tmp_path / "in/.Trash-1000/files/b", 2)
  _, source = imported(tmp_path)
  assert len(source) == 4


def test_flags_name_the_input_wherever_the_program_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  args = types.SimpleNamespace(
    **OPTIONS._asdict(), input="in", instruction="wipe"
  )
  found = import_flags.from_flags(args)
  assert found == OPTIONS._replace(
    source={"input": str(tmp_path / "in"), "instruction": "wipe"}
  )


def test_a_folder_without_an_episode_is_named(tmp_path):
  (tmp_path / "in").mkdir()
  with pytest.raises(UserError, match="action.csv or action.npy"):
    imported(tmp_path)

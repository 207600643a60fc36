"""Batches: what they hold, in which order, and what stops them."""

import io

import numpy as np
import pytest
from PIL import Image

from rt2_jax import images
from rt2_jax.action_spaces import RT2
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import frames, loader
from rt2_jax.input_pipeline.examples import RobotExamples
from rt2_jax.input_pipeline.loader import Loader
from rt2_jax.input_pipeline.mixture import Mixture
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.observation import ObservationSpec
from rt2_jax.prompt import Prompt
from tests import tiny_datasets


@pytest.fixture
def make_loader(tmp_path, tokenizer):
  actions = ActionTokenizer(RT2, tokenizer.action_route("rare"))
  prompt = Prompt(tokenizer, prefix_length=24, suffix_length=9)

  def make(episodes=None, rows=range(8), history=1, more=(), max_skipped=0):
    if episodes is None:
      episodes = [tiny_datasets.bridge_episode(seed) for seed in range(4)]
    examples, spec = [], ObservationSpec(history=history)
    for i, each in enumerate([episodes, *more]):
      folder = tiny_datasets.write(tmp_path / str(i), each)
      config = SourceConfig("bridge_dataset", str(folder))
      source = open_source(config, "train", spec)
      examples.append(RobotExamples(source, actions, prompt, spec))
    sizes = tuple(len(e) for e in examples)
    mixture = Mixture(sizes, (1.0,) * len(sizes), seed=0)
    return Loader(
      examples, mixture, 8, rows, 32, history, max_skipped=max_skipped
    )

  return make


@pytest.mark.parametrize(
  ("sizes", "weights", "canvas"),
  [
    ([(256, 320)], [1], (256, 320)),
    ([(256, 320), (0, 0)], [1, 1], (256, 320)),
    ([(480, 640), (256, 320)], [1, 9], (256, 320)),
    ([(480, 640), (256, 320)], [1, 1], (480, 640)),
    ([(256, 320), (256, 256), (0, 0)], [1, 1, 2], (256, 320)),
    ([(320, 240), (240, 320)], [1, 1], (320, 320)),
    ([(64, 64)], [1], (224, 224)),
    ([(0, 0)], [1], (224, 224)),
  ],
)
def test_few_large_images_do_not_make_all_rows_large(sizes, weights, canvas):
  assert frames.canvas_for(sizes, weights, 224) == canvas


def equal(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_holds_what_the_mixture_says(make_loader, tokenizer):
  batches = make_loader()
  (batch,) = batches.batches(3, 4)
  source = batches.examples[0].source
  index = batches.mixture.draw(3, np.arange(8), 8).example
  assert batch.image.shape == (8, 1, 64, 64, 3)
  assert batch.image.dtype == np.uint8
  assert batch.mask_loss.sum(-1).tolist() == [9.0] * 8  # 8 numbers and eos
  actions = ActionTokenizer(RT2, tokenizer.action_route("rare"))
  for b, i in enumerate(index):
    (image,) = source.storage.read(source.requests([int(i)])[0])
    pixels = images.decode(image)
    np.testing.assert_array_equal(batch.image[b, 0], pixels)
    np.testing.assert_array_equal(batch.image_size[b], [[64, 64]])
    np.testing.assert_array_equal(
      batch.suffix[b, :8], actions.encode(source.index.action[[i]])
    )


def test_starting_later_gives_the_same_batches(make_loader):
  whole = list(make_loader().batches(0, 6))
  rest = list(make_loader().batches(4, 6))
  assert len(whole) == 6
  assert all(equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_hosts_load_disjoint_rows_of_one_batch(make_loader):
  (whole,) = make_loader().batches(2, 3)
  halves = [
    next(make_loader(rows=rows).batches(2, 3))
    for rows in (range(4), range(4, 8))
  ]
  joined = [np.concatenate(x) for x in zip(*halves, strict=True)]
  assert equal(joined, whole)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_goes_on_with_the_same_global_batches(
  make_loader, hosts
):
  """Whichever rows a host has: here they lie apart."""
  more = [[tiny_datasets.bridge_episode(9, length=7)]]
  whole = list(make_loader(more=more).batches(0, 9))[5:]
  for host in range(hosts):
    rows = np.arange(host, 8, hosts)
    part = make_loader(more=more, rows=rows)
    for batch, expected in zip(part.batches(5, 9), whole, strict=True):
      assert equal(batch, [column[rows] for column in expected])


def test_two_sources_share_the_batch(make_loader):
  more = [[tiny_datasets.bridge_episode(9, instruction="flip pot upright")]]
  (batch,) = make_loader(more=more).batches(0, 1)
  assert np.bincount(batch.source).tolist() == [4, 4]


def test_two_frames(make_loader):
  (batch,) = make_loader(history=2).batches(0, 1)
  assert batch.image.shape == (8, 2, 64, 64, 3)


def test_a_broken_image_is_named_with_file_and_offset(make_loader):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(4)]
  images = episodes[2]["steps/observation/image_0"]
  images[1] = images[1][: len(images[1]) // 4]
  batches = make_loader(episodes)
  (offset,) = batches.examples[0].source.index.offset[2 * 5 + 1]
  with pytest.raises(
    ValueError,
    match=rf"bridge_dataset-train.tfrecord-00000-of-00001, byte {offset}: got "
    r"\d+ bytes that do not decode as an image",
  ):
    list(batches.batches(0, 10))


@pytest.mark.parametrize("shape", [(1, 9000), (4, 64)])
def test_an_image_of_an_unlikely_size_is_named(make_loader, shape):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(4)]
  episodes[1]["steps/observation/image_0"][2] = tiny_datasets.jpeg(0, *shape)
  with pytest.raises(
    ValueError, match=f"got an image of {shape[0]} x {shape[1]} pixels, expecte"
  ):
    list(make_loader(episodes).batches(0, 10))


def test_sources_of_two_sizes_share_a_canvas(make_loader):
  other = tiny_datasets.bridge_episode(9)
  images = [tiny_datasets.jpeg(t, 48, 80) for t in range(5)]
  other["steps/observation/image_0"] = images
  batches = make_loader(more=[[other]])
  (batch,) = batches.batches(0, 1)
  assert batch.image.shape == (8, 1, 64, 80, 3)
  for b in range(8):
    height, width = batch.image_size[b, 0]
    assert (height, width) == ((64, 64), (48, 80))[batch.source[b]]
    assert not batch.image[b, :, height:].any()
    assert not batch.image[b, :, :, width:].any()


def test_a_damaged_image_gives_way_to_the_next_one(make_loader):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(4)]
  whole = list(make_loader(episodes).batches(0, 5))
  images = episodes[2]["steps/observation/image_0"]
  images[1] = b"damaged"
  batches = make_loader(episodes, max_skipped=1)
  changed = 0
  for step, (batch, good) in enumerate(
    zip(batches.batches(0, 5), whole, strict=True)
  ):
    for b, i in enumerate(batches.mixture.draw(step, np.arange(8), 8).example):
      same = all(
        np.array_equal(x[b], y[b]) for x, y in zip(batch, good, strict=True)
      )
      assert same == (i != 11)
      changed += not same
  assert changed == 2  # twice in two epochs, and counted once
  (skipped,) = batches.damage.skipped
  assert "got 7 bytes that do not decode as an image" in skipped


def test_an_image_that_changed_after_it_was_indexed_gives_way(make_loader):
  """One flipped bit, which still decodes, into another picture."""
  whole = list(make_loader().batches(0, 5))
  for max_skipped in 0, 1:
    batches = make_loader(max_skipped=max_skipped)
    (request,) = batches.examples[0].requests([11])[0]
    with open(request.path, "r+b") as file:
      file.seek(request.offset + request.length // 2)
      (byte,) = file.read(1)
      file.seek(-1, 1)
      file.write(bytes([byte ^ 16]))
    if not max_skipped:
      with pytest.raises(
        ValueError, match=rf"byte {request.offset}: got .* bytes with checksum"
      ):
        list(batches.batches(0, 5))
      continue
    drawn = [batches.mixture.draw(step, np.arange(8), 8) for step in range(5)]
    for step, batch in enumerate(batches.batches(0, 5)):
      same = (batch.image == whole[step].image).all((1, 2, 3, 4))
      np.testing.assert_array_equal(same, drawn[step].example != 11)
    assert batches.damage.count == 1


def test_more_damage_than_tolerated_is_an_error(make_loader):
  episodes = [tiny_datasets.bridge_episode(seed) for seed in range(4)]
  for t in (1, 3):
    episodes[2]["steps/observation/image_0"][t] = b"damaged"
  with pytest.raises(ValueError, match="do not decode as an image"):
    list(make_loader(episodes, max_skipped=1).batches(0, 5))


@pytest.mark.parametrize(
  ("rows", "max_skipped", "tolerated"),
  [(8, 3, 3), (4, 3, 2), (2, 3, 1), (2, 0, 0), (4, 20, 10)],
)
def test_hosts_share_what_a_run_tolerates(
  make_loader, rows, max_skipped, tolerated
):
  damage = make_loader(rows=range(rows), max_skipped=max_skipped).damage
  for i in range(tolerated):
    damage.skip(UserError(f"image {i}"))
  with pytest.raises(UserError, match="one more"):
    damage.skip(UserError("one more"))


def test_damaged_records_count_as_skipped(make_loader, tmp_path, tokenizer):
  make_loader()
  (path,) = (tmp_path / "0").glob("*.tfrecord-*")
  data = bytearray(path.read_bytes())
  data[3000] ^= 1
  path.write_bytes(data)
  config = SourceConfig("bridge_dataset", str(tmp_path / "0"))
  source = open_source(config, "train", max_skipped=5)
  actions = ActionTokenizer(RT2, tokenizer.action_route("rare"))
  examples = [RobotExamples(source, actions, Prompt(tokenizer, 24, 9))]
  mixture = Mixture((15,), (1.0,), seed=0)
  batches = Loader(examples, mixture, 8, range(8), 32, max_skipped=5)
  lines = [loss.problem for loss in source.index.damaged]
  assert batches.damage.skipped == lines
  assert batches.damage.count == 5  # steps
  with pytest.raises(ValueError, match="whose checksum is wrong"):
    Loader(examples, mixture, 8, range(8), 32, max_skipped=4)


def test_memory_is_stated_and_refused(make_loader, caplog, monkeypatch):
  with caplog.at_level("INFO"):
    make_loader()
  assert "MB of buffers for 8 rows of 64 x 64 pixels" in caplog.text
  free = type("Memory", (), {"available": 1000})
  monkeypatch.setattr(loader.psutil, "virtual_memory", lambda: free)
  with pytest.raises(
    ValueError, match="got input buffers of .* lower config.b"
  ):
    make_loader()


def test_too_long_an_instruction_stops_before_the_first_batch(make_loader):
  episode = tiny_datasets.bridge_episode(0, instruction="stack blocks " * 20)
  with pytest.raises(ValueError, match=r"raise config\.prompt\.prefix_length"):
    make_loader([episode])


def png(seed: int, height: int, width: int) -> bytes:
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


@pytest.mark.parametrize("first", [0, 1])
def test_images_of_several_sizes_and_kinds_share_a_source(make_loader, first):
  """Whichever is first; and frames that differ within one example."""
  pictures = [
    *(tiny_datasets.jpeg(0, 96, 128), tiny_datasets.jpeg(1, 64, 64)),
    *(png(2, 40, 150), png(3, 64, 64), tiny_datasets.jpeg(4, 9, 200)),
  ]
  episode = tiny_datasets.bridge_episode(0)
  episode["steps/observation/image_0"] = pictures[first:] + pictures[:first]
  batches = make_loader([episode], history=2)
  assert batches.canvas == (96, 200)
  (batch,) = batches.batches(0, 1)
  source = batches.examples[0].source
  drawn = batches.mixture.draw(0, np.arange(8), 8)
  for b, i in enumerate(drawn.example):
    seen = [
      images.decode(f) for f in source.storage.read(source.requests([i])[0])
    ]
    for f, frame in enumerate(seen):
      height, width = batch.image_size[b, f]
      shown = batch.image[b, f, :height, :width]
      np.testing.assert_array_equal(shown, frame)
      assert not batch.image[b, f, height:].any()
      assert not batch.image[b, f, :, width:].any()


def test_the_careful_way_gives_the_same_batch(make_loader):
  """Rows beside a damaged one are what they would have been."""
  batches = make_loader(history=2)
  for step, batch in enumerate(batches.batches(0, 2)):
    assert equal(batch, batches._load_carefully(step))

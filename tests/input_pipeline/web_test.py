"""Web examples: what a record must hold, and what a row makes of it."""

import dataclasses
import pathlib

import numpy as np
import pytest

from data import make_web_records
from rt2_jax.input_pipeline import web
from rt2_jax.input_pipeline.examples import WebExamples
from rt2_jax.observation import ObservationSpec
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import Proto, Tokenizer
from tests import tiny_datasets


def write(folder, examples, num_shards=1):
  tiny_datasets.write(folder, examples, "pictures", num_shards=num_shards)
  (folder / "dataset_info.json").unlink()  # as in older folders
  return web.WebConfig(str(folder))


def test_every_example_is_found(tmp_path, tokenizer):
  examples = [tiny_datasets.web_example(seed) for seed in range(7)]
  source = web.open_source(write(tmp_path, examples, num_shards=3), tokenizer)
  assert len(source) == 7
  for i in range(7):
    (data,) = source.storage.read(source.requests([i])[0])
    assert examples[i]["image"][0] in data


def test_each_epoch_takes_the_next_answer(tmp_path, tokenizer):
  example = tiny_datasets.web_example(
    0, answers=["red", "dark red", "<loc0007>"]
  )
  source = web.open_source(write(tmp_path, [example]), tokenizer)
  prompt = Prompt(tokenizer, 24, 9)
  rows = WebExamples(source, prompt, ObservationSpec(history=2))
  data = source.storage.read(source.requests([0])[0])
  for epoch, answer in enumerate(["red", "dark red", "<loc0007>", "red"]):
    row = tiny_datasets.row(rows, 0, epoch, data)
    assert tokenizer.decode(row.suffix) == answer
    assert row.mask_loss.sum() == len(tokenizer.encode(answer)) + 1
    question = tokenizer.decode(row.prefix[row.mask_input])
    assert question == "Answer in en: what colour is the cup?\n"
    assert row.images == (example["image"][0],) * 2


@pytest.mark.parametrize(
  ("feature", "values", "message"),
  [
    ("image", [b""], "an empty 'image', expected image, question and at least"),
    ("question", [b""], "an empty 'question', expected image, question and at"),
    ("answers", [b"red", b""], "an empty 'answers', expected image, question"),
    ("question", [b" \n"], "an empty 'question', expected image, question and"),
    (
      "answers",
      [b"red", b"\t"],
      "an empty 'answers', expected image, question",
    ),
    ("answers", [], "an empty 'answers', expected image, question and at leas"),
    ("question", [b"\xff?"], "a text in 'question' that is not UTF-8"),
    ("image", [b"a", b"b"], "2 values of 'image', expected one"),
  ],
)
def test_a_record_that_cannot_be_used_is_named_or_left_out(
  tmp_path, tokenizer, feature, values, message
):
  examples = [tiny_datasets.web_example(seed) for seed in range(3)]
  examples[1][feature] = values
  config = write(tmp_path, examples)
  with pytest.raises(
    ValueError,
    match=rf"got 1 .* = 0: {tmp_path}/pictures.*, byte \d+: got .*{message}",
  ):
    web.open_source(config, tokenizer)
  source = web.open_source(config, tokenizer, max_skipped=1)
  assert len(source) == 2 and source.index.damaged[0].examples == 1


@pytest.mark.parametrize("stated", [True, False])
def test_a_shard_cut_between_records(tmp_path, tokenizer, stated):
  """Is noticed where lengths are stated, as data/make_web_records.py does."""
  examples = [tiny_datasets.web_example(seed) for seed in range(4)]
  config = write(tmp_path, examples, num_shards=2)
  whole = web.open_source(config, tokenizer)
  path, end = whole.index.files[0], int(whole.index.offset[1]) - 12
  with open(path, "r+b") as file:
    file.truncate(end)
  if not stated:
    assert len(web.open_source(config, tokenizer)) == 3
    return
  make_web_records.state_lengths(tmp_path, "pictures", "train", [2, 2])
  make_web_records.state_lengths(tmp_path, "pictures", "val", [7])
  with pytest.raises(ValueError, match=f"{path}: got 1 records, expected 2"):
    web.open_source(config, tokenizer)
  assert len(web.open_source(config, tokenizer, max_skipped=1)) == 3


def test_a_changed_record_is_named_when_it_is_read(tmp_path, tokenizer):
  examples = [tiny_datasets.web_example(seed) for seed in range(3)]
  source = web.open_source(write(tmp_path, examples), tokenizer)
  (request,) = source.requests([1])[0]
  data = bytearray(pathlib.Path(request.path).read_bytes())
  data[request.offset + request.length // 2] ^= 1
  pathlib.Path(request.path).write_bytes(data)
  with pytest.raises(
    ValueError, match=rf"{request.path}, byte {request.offset}: got .*checksum"
  ):
    source.storage.read([request])
  source.storage.read(source.requests([2])[0])


@pytest.mark.parametrize("num_shards", [1, 3])
def test_parts_of_a_split_are_stretches_of_its_examples(
  tmp_path, tokenizer, num_shards
):
  examples = [tiny_datasets.web_example(seed) for seed in range(9)]
  config = write(tmp_path / "data", examples, num_shards)
  folder = str(tmp_path / "index")
  whole = web.open_source(config, tokenizer, folder)
  parts = []
  for part in ":40%", "40%:", "-2:":
    some = dataclasses.replace(config, split=f"train[{part}]")
    parts.append(web.open_source(some, tokenizer, folder))
  requests = [
    [s.requests([i])[0][0] for i in range(len(s))] for s in (whole, *parts)
  ]
  assert requests[1] == requests[0][:4] and requests[2] == requests[0][4:]
  assert requests[3] == requests[0][-2:]
  assert len(list((tmp_path / "index").iterdir())) == num_shards
  with pytest.raises(ValueError, match="got split 'train.9:.' of 9 examples"):
    web.open_source(dataclasses.replace(config, split="train[9:]"), tokenizer)


@pytest.mark.parametrize("feature", ["question", "answers"])
def test_a_record_with_a_control_word_is_named(tmp_path, tokenizer, feature):
  examples = [tiny_datasets.web_example(seed) for seed in range(3)]
  examples[1][feature] = [b"is it a <eos>?"]
  with pytest.raises(
    ValueError,
    match=r"pictures-train\.tfrecord-0.*, byte \d+: got text .* word '<eos>'",
  ):
    web.open_source(write(tmp_path, examples), tokenizer)


def test_a_folder_without_records_is_refused(tmp_path, tokenizer):
  with pytest.raises(
    ValueError, match=r"holds no \*-train\.tfrecord-00000-of-"
  ):
    web.open_source(web.WebConfig(str(tmp_path)), tokenizer)


def test_a_missing_shard_is_named(tmp_path, tokenizer):
  examples = [tiny_datasets.web_example(seed) for seed in range(4)]
  config = write(tmp_path, examples, num_shards=4)
  (tmp_path / "pictures-train.tfrecord-00002-of-00004").unlink()
  with pytest.raises(ValueError, match="got 3 of 4 .* missing: 00002-of-00004"):
    web.open_source(config, tokenizer)


def test_two_datasets_in_one_folder_are_refused(tmp_path, tokenizer):
  config = write(tmp_path, [tiny_datasets.web_example(0)])
  (shard,) = tmp_path.glob("*.tfrecord-*")
  (tmp_path / shard.name.replace("pictures", "more")).write_bytes(b"")
  with pytest.raises(
    ValueError, match="got both .*more.* and .*pictures.* one"
  ):
    web.open_source(config, tokenizer)


@pytest.fixture
def too_long(tmp_path, tokenizer):
  """Six examples; the question of one and an answer of two are too long."""
  examples = [tiny_datasets.web_example(seed) for seed in range(6)]
  examples[1]["question"] = [b"Answer in en: " + b"what is on the table? " * 9]
  for i in 3, 4:
    examples[i]["answers"] = [b"red", b"a very long answer " * i]
  return web.open_source(write(tmp_path, examples), tokenizer)


def test_texts_that_are_too_long_are_known_at_the_start(too_long, tokenizer):
  with pytest.raises(
    ValueError,
    match=r"got 3 examples that cannot be used, expected at most "
    r"config.loader.max_skipped = 0: \S+00000-of-00001, byte \d+: got a prompt "
    r"of \d+ tokens, expected at most 24; raise config.prompt.prefix_length; "
    r".*, byte \d+: got an answer of \d+ tokens, expected at most 9; raise "
    r"config.prompt.suffix_length",
  ):
    WebExamples(too_long, Prompt(tokenizer, 24, 9))
  longest = tokenizer.encode("a very long answer " * 4)
  WebExamples(too_long, Prompt(tokenizer, 200, len(longest) + 1))
  with pytest.raises(ValueError, match="got 1 examples"):
    WebExamples(too_long, Prompt(tokenizer, 200, len(longest)))


def test_texts_that_are_too_long_are_left_out(too_long, tokenizer):
  prompt = Prompt(tokenizer, 24, 9)
  rows = WebExamples(too_long, prompt, max_skipped=3)
  assert len(rows) == 3 and len(rows.skipped) == 3
  for i, kept in enumerate([0, 2, 5]):
    assert rows.requests([i])[0] == too_long.requests([kept])[0]
    (data,) = rows.storage.read(rows.requests([i])[0])
    assert tiny_datasets.row(rows, i, 0, [data]).images == (
      tiny_datasets.jpeg(kept, 40 + kept, 90),
    )


def test_a_damaged_record_is_left_out(tmp_path, tokenizer):
  config = write(tmp_path, [tiny_datasets.web_example(i) for i in range(3)])
  (path,) = tmp_path.glob("*.tfrecord-*")
  data = bytearray(path.read_bytes())
  data[500] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match="byte 12 whose checksum is wrong; copy"):
    web.open_source(config, tokenizer)
  source = web.open_source(config, tokenizer, max_skipped=1)
  rows = WebExamples(source, Prompt(tokenizer, 24, 9), 1, max_skipped=1)
  assert len(rows) == 2 and "byte 12 whose" in rows.skipped[0].problem


def test_another_tokenizer_gives_another_index(tmp_path, tokenizer):
  config = write(tmp_path / "data", [tiny_datasets.web_example(0)])
  folder = tmp_path / "index"
  other = Proto.FromString(tokenizer.model)
  other.pieces[300].score -= 1.0
  for each in tokenizer, Tokenizer(other.SerializeToString()), tokenizer:
    web.open_source(config, each, str(folder))
  assert len(list(folder.glob("*.npz"))) == 2


def test_numbers_of_an_index(tmp_path, tokenizer):
  examples = [tiny_datasets.web_example(seed) for seed in range(5)]
  source = web.open_source(write(tmp_path, examples, num_shards=2), tokenizer)
  assert source.index.nbytes == 24 * 5
  question = "Answer in en: what colour is the cup?\n"
  assert set(source.index.question_length) == {
    1 + len(tokenizer.encode(question))
  }
  assert set(source.index.answer_length) == {len(tokenizer.encode("red")) + 1}
  np.testing.assert_array_equal(source.index.file, [0, 0, 0, 1, 1])

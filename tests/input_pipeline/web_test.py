"""Web examples: what a record must hold, and what a row makes of it."""

import numpy as np
import pytest

from rt2_jax.input_pipeline import web
from rt2_jax.input_pipeline.examples import WebExamples
from rt2_jax.prompt import Prompt
from tests import tiny_datasets


def write(folder, examples, num_shards=1):
  tiny_datasets.write(folder, examples, "pictures", num_shards=num_shards)
  (folder / "dataset_info.json").unlink()  # web folders have none
  return web.WebConfig(str(folder))


def test_every_example_is_found(tmp_path):
  examples = [tiny_datasets.web_example(seed) for seed in range(7)]
  source = web.open_source(write(tmp_path, examples, num_shards=3))
  assert len(source) == 7
  for i in range(7):
    (data,) = source.storage.read(source.requests(i))
    assert examples[i]["image"][0] in data


def test_each_epoch_takes_the_next_answer(tmp_path, tokenizer):
  example = tiny_datasets.web_example(
    0, answers=["red", "dark red", "<loc0007>"]
  )
  source = web.open_source(write(tmp_path, [example]))
  prompt = Prompt(tokenizer, 24, 9)
  rows = WebExamples(source, prompt, num_frames=2)
  data = source.storage.read(source.requests(0))
  for epoch, answer in enumerate(["red", "dark red", "<loc0007>", "red"]):
    row = rows.row(0, epoch, data)
    assert tokenizer.decode(row.suffix) == answer
    assert row.mask_loss.sum() == len(tokenizer.encode(answer)) + 1
    question = tokenizer.decode(row.prefix[row.mask_input])
    assert question == "Answer in en: what colour is the cup?\n"
    assert row.images == (example["image"][0],) * 2


@pytest.mark.parametrize("feature", ["image", "question", "answers"])
def test_a_record_without_a_part_is_named(tmp_path, feature):
  examples = [tiny_datasets.web_example(seed) for seed in range(3)]
  examples[1][feature] = [b""]
  config = write(tmp_path, examples)
  with pytest.raises(
    ValueError,
    match=rf"pictures-train\.tfrecord-0.*, byte \d+: got a web record with an "
    rf"empty '{feature}', expected image, question and at least one answer",
  ):
    web.open_source(config)


def test_a_folder_without_records_is_refused(tmp_path):
  with pytest.raises(
    ValueError, match=r"holds no \*-train\.tfrecord-00000-of-"
  ):
    web.open_source(web.WebConfig(str(tmp_path)))


def test_a_missing_shard_is_named(tmp_path):
  examples = [tiny_datasets.web_example(seed) for seed in range(4)]
  config = write(tmp_path, examples, num_shards=4)
  (tmp_path / "pictures-train.tfrecord-00002-of-00004").unlink()
  with pytest.raises(ValueError, match="got 3 of 4 .* missing: 00002-of-00004"):
    web.open_source(config)


def test_two_datasets_in_one_folder_are_refused(tmp_path):
  config = write(tmp_path, [tiny_datasets.web_example(0)])
  (shard,) = tmp_path.glob("*.tfrecord-*")
  (tmp_path / shard.name.replace("pictures", "more")).write_bytes(b"")
  with pytest.raises(
    ValueError, match="got both .*more.* and .*pictures.* one"
  ):
    web.open_source(config)


def test_too_long_an_answer_is_named_with_its_place(tmp_path, tokenizer):
  example = tiny_datasets.web_example(0, answers=["a very long answer " * 9])
  source = web.open_source(write(tmp_path, [example]))
  rows = WebExamples(source, Prompt(tokenizer, 24, 9), num_frames=1)
  data = source.storage.read(source.requests(0))
  with pytest.raises(
    ValueError, match=r"00000-of-00001, byte 12: got an answer of \d+ tokens"
  ):
    rows.row(0, 0, data)


def test_numbers_of_an_index(tmp_path):
  examples = [tiny_datasets.web_example(seed) for seed in range(5)]
  source = web.open_source(write(tmp_path, examples, num_shards=2))
  assert source.index.nbytes == 16 * 5
  np.testing.assert_array_equal(source.index.file, [0, 0, 0, 1, 1])

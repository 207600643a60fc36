"""Splits and their parts, against TFDS's own reading of the same syntax."""

import json

import pytest
import tensorflow_datasets as tfds

from rt2_jax.byte_ranges import LocalStorage
from rt2_jax.input_pipeline import splits
from rt2_jax.input_pipeline.splits import Part
from tests import tiny_datasets

STORAGE = LocalStorage()


@pytest.fixture
def folder(tmp_path):
  episodes = [tiny_datasets.bridge_episode(i, length=1) for i in range(4)]
  return tiny_datasets.write(tmp_path / "1.0.0", episodes, num_shards=2)


def by_tfds(text, lengths):
  """The examples that TFDS takes, numbered over all shards."""
  template = tfds.core.ShardedFileTemplate(
    data_dir="/", dataset_name="d", split="train", filetype_suffix="tfrecord"
  )
  info = tfds.core.SplitInfo(
    name="train", shard_lengths=lengths, num_bytes=0, filename_template=template
  )
  out = []
  for each in tfds.core.SplitDict([info])[text].file_instructions:
    shard = int(each.filename.rpartition("tfrecord-")[2][:5])
    length = each.examples_in_shard if each.take == -1 else each.take
    begin = sum(lengths[:shard]) + each.skip
    stop = begin - each.skip + length if each.take == -1 else begin + length
    out += range(begin, stop)
  return out


def taken(text, lengths):
  out, begin = [], 0
  for (first, stop), n in zip(
    Part.parse(text).spans(lengths), lengths, strict=True
  ):
    out += range(begin + first, begin + stop)
    begin += n
  return out


PARTS = ["", "[:50%]", "[50%:]", "[:90%]", "[90%:]", "[25%:75%]", "[-30%:]"]
PARTS += ["[:-30%]", "[2:5]", "[-3:]", "[:-1]", "[3:]", "[0:1]", "[33.3%:]"]
PARTS += ["[:1shard]", "[1shard:]", "[10:50%]", "[0:90%]", "[1_0:]"]


@pytest.mark.parametrize(
  "lengths", [[12], [5, 7], [4, 4, 4, 5], [1] * 11, [0, 12, 0, 1]]
)
def test_parts_are_what_tfds_takes(lengths):
  compared = 0
  for part in PARTS:
    try:
      expected = by_tfds(f"train{part}", lengths)
    except ValueError:
      expected = []
    if expected:
      assert taken(f"train{part}", lengths) == expected, part
      compared += 1
    else:
      with pytest.raises(ValueError, match="got split 'train.*expected"):
        taken(f"train{part}", lengths)
  assert compared > len(PARTS) - 5


@pytest.mark.parametrize("lengths", [[1], [3], [5, 7], [1] * 9, [100, 3]])
@pytest.mark.parametrize("bound", ["50%", "90%", "99%", "37.5%", "-20%", "-1"])
def test_complementary_parts_are_disjoint_and_complete(lengths, bound):
  total = list(range(sum(lengths)))
  parts, empty = [], 0
  for text in f"train[:{bound}]", f"train[{bound}:]":
    try:
      parts.append(taken(text, lengths))
    except ValueError as error:  # an empty part is never something else
      assert "expected at least one" in str(error) or "are none" in str(error)
      empty += 1
  joined = [example for part in parts for example in part]
  assert joined == (total if empty < 2 else [])


@pytest.mark.parametrize(
  "split",
  [
    "train[",
    "train[50%]",
    "train[:50",
    "train[:a%]",
    "train[1:2:3]",
    "train+",
    "train[:50%][1:]",
    "",
    "train[:5%%]",
    "train[--1:]",
    "train[1.5:]",
    "train[:50%]+test",
    "train[1shard:50%]",
    "[:50%]",
    "train[:1.2.3%]",
  ],
)
def test_a_malformed_part_is_refused(split):
  with pytest.raises(
    ValueError, match="got split .*, expected a split's name,"
  ):
    Part.parse(split)


@pytest.mark.parametrize(
  ("split", "message"),
  [
    ("train[5:3]", "of 12 examples, expected at least one example in it"),
    ("train[99%:]", "of 12 examples, expected at least one example in it"),
    ("train[20:30]", "of 12 examples in 2 shards, expected bounds within"),
    ("train[:120%]", "of 12 examples in 2 shards, expected bounds within"),
    ("train[-13:]", "of 12 examples in 2 shards, expected bounds within"),
    ("train[3shard:]", "of 2 shards, expected bounds within"),
    ("train[-1%:]", "of 12 examples, of which -1% are none; take a larger"),
  ],
)
def test_a_part_that_holds_nothing_is_refused(split, message):
  with pytest.raises(ValueError, match=rf"got split '.*' {message}"):
    Part.parse(split).spans([5, 7])


def test_shards_and_their_lengths_are_found(folder):
  found = splits.find_split(STORAGE, str(folder), "train[50%:]")
  assert [shard.length for shard in found.shards] == [2, 2]
  assert found.part.spans([2, 2]) == [(2, 2), (0, 2)]


def test_a_missing_shard_is_named(folder):
  (folder / "bridge_dataset-train.tfrecord-00001-of-00002").unlink()
  with pytest.raises(
    ValueError, match="got 1 of 2 TFRecord .*missing: 00001-of-00002"
  ):
    splits.find_split(STORAGE, str(folder), "train")


def test_a_missing_dataset_or_split_is_named(folder):
  with pytest.raises(ValueError, match=r"no_such', which holds no dataset_inf"):
    splits.find_split(STORAGE, str(folder / "no_such"), "train")
  for split in "test", "test[:10%]":
    with pytest.raises(
      ValueError, match="got split 'test.*, expected one of tr"
    ):
      splits.find_split(STORAGE, str(folder), split)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{",
    '{"splits": [{"na',
    "[]",
    "null",
    "{}",
    '{"splits": 3}',
    '{"splits": [{"name": "train", "shardLengths": ["x"]}]}',
    "ÿ",
  ],
)
def test_a_broken_info_is_named(folder, text):
  (folder / "dataset_info.json").write_bytes(text.encode("latin-1"))
  with pytest.raises(
    ValueError, match=r"dataset_info\.json: got a file that cannot be read"
  ):
    splits.find_split(STORAGE, str(folder), "train")


def test_another_file_format_is_named(folder):
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text()) | {"fileFormat": "array_record"}
  path.write_text(json.dumps(info))
  with pytest.raises(
    ValueError, match="'array_record', expected 'tfrecord'; .*tfds convert_f"
  ):
    splits.find_split(STORAGE, str(folder), "train")


def test_without_stated_lengths_shards_are_found_by_name(folder, caplog):
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  del info["splits"][0]["shardLengths"]
  path.write_text(json.dumps(info))
  found = splits.find_split(STORAGE, str(folder), "train")
  assert [shard.length for shard in found.shards] == [None, None]
  assert "states no shardLengths of split 'train'" in caplog.text


def test_the_only_version_of_a_dataset_is_found(folder, tmp_path):
  version = tmp_path / "bridge_dataset" / "1.0.0"
  folder.rename(version.parent.parent / "moved")
  version.parent.mkdir()
  (tmp_path / "moved").rename(version)
  for given in (version.parent, version):
    found = splits.version_folder(STORAGE, str(given))
    assert found == str(version)
  (version.parent / "1.0.1").mkdir()
  with pytest.raises(ValueError, match=r"several versions.*1\.0\.0, .*1\.0\.1"):
    splits.version_folder(STORAGE, str(version.parent))


@pytest.mark.parametrize(
  ("template", "names", "problem"),
  [
    ("{SPLIT}.{SHARD_INDEX}", ["train.00000", "train.00001"], ""),
    (
      "{DATASET}_{SHARD_X_OF_Y}.tfr",
      ["bridge_dataset_00000-of-00002.tfr"],
      "1",
    ),
    ("{SPLIT}/{SHARD_INDEX}", [], "expected a file's name with the fields"),
    ("{WHAT}", [], "expected a file's name with the fields DATASET, SPLIT"),
  ],
)
def test_files_may_be_named_by_a_template(folder, template, names, problem):
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  info["splits"][0]["filepathTemplate"] = template
  path.write_text(json.dumps(info))
  for old, new in zip(sorted(folder.glob("*-of-*")), names, strict=False):
    old.rename(folder / new)
  if problem:
    with pytest.raises(ValueError, match=problem):
      splits.find_split(STORAGE, str(folder), "train")
  else:
    found = splits.find_split(STORAGE, str(folder), "train")
    assert [shard.path for shard in found.shards] == [
      str(folder / name) for name in names
    ]

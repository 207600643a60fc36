"""data/make_web_records.py, from lines of JSON."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from data import (
  make_web_records,
  web_inputs,
)
from rt2_jax import images, local_copies
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import web
from rt2_jax.input_pipeline.examples import WebExamples
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import BOS
from tests import tiny_datasets
from tests.tiny_web import DEFAULTS, picture, read


def write_jsonl(folder, lines, images=None):
  """A JSONL file beside its images; returns what is read from it."""
  images = {"a.png": picture()} if images is None else images
  for name, data in images.items():
    (folder / name).write_bytes(data)
  path = folder / "data.jsonl"
  path.write_bytes(b"\n".join(map(as_bytes, lines)) + b"\n")
  return web_inputs.read_jsonl(path, folder, DEFAULTS)


def as_bytes(line) -> bytes:
  if isinstance(line, bytes):
    return line
  return (line if isinstance(line, str) else json.dumps(line)).encode()


QUESTION = {"image": "a.png", "prefix": "answer en where?", "suffix": "here"}


def test_jsonl_round_trip(tmp_path, tokenizer):
  found = write_jsonl(
    tmp_path,
    [
      QUESTION,
      "",
      {**QUESTION, "suffix": ["hier", "dort"], "language": "de", "task": "vqa"},
    ],
  )
  make_web_records.make(found, tmp_path / "out", "vqa")
  first, second = read(tmp_path / "out")
  assert first == (picture(), "answer en where?", ("here",), "", "en")
  assert second[2:] == (("hier", "dort"), "vqa", "de")

  source = web.open_source(web.WebConfig(str(tmp_path / "out")), tokenizer)
  rows = WebExamples(source, Prompt(tokenizer, 24, 16))
  for epoch, answer in enumerate(["dort", "hier", "dort"]):
    row = tiny_datasets.row(
      rows, 1, epoch, source.storage.read(source.requests([1])[0])
    )
    assert tokenizer.decode(row.suffix) == answer
    assert row.prefix[row.mask_input][0] == BOS
  assert row.images == (picture(),)


def test_examples_are_dealt_to_shards_in_turn(tmp_path):
  lines = [{**QUESTION, "suffix": str(i)} for i in range(5)]
  for out in ("out", "again"):
    found = write_jsonl(tmp_path, lines)
    paths = make_web_records.make(found, tmp_path / out, "n", num_shards=2)
    assert [path.name for path in paths] == [
      f"n-train.tfrecord-0000{i}-of-00002" for i in range(2)
    ]
  answers = [e.answers[0] for e in read(tmp_path / "out")]
  assert answers == ["0", "2", "4", "1", "3"]
  for path in paths:
    assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.parametrize(
  ("image", "size"),
  [
    (picture(400, 200), (100, 50)),  # too large
    (picture(file_format="webp"), (40, 30)),  # training reads no WebP
    (picture(file_format="jpeg", orientation=6), (30, 40)),  # on its side
  ],
)
def test_images_that_training_cannot_use_are_written_again(image, size):
  written = make_web_records.prepare_image(image, 100)
  with Image.open(io.BytesIO(written)) as again:
    assert (again.format, again.size) == ("JPEG", size)
    red, _, blue = again.convert("RGB").getpixel((3, 3))
    assert red > 200 and blue < 50


@pytest.mark.parametrize("max_side", [100, 32])
def test_drawings_and_16_bit_pictures_are_what_they_show(max_side):
  """Kept as they are or written again: on a white ground, all levels there."""
  drawing = np.zeros((64, 64, 4), np.uint8)
  drawing[16:48, 16:48, 3] = 255  # black, on a transparent ground
  ramp = np.linspace(0, 65535, 64).astype(np.uint16).repeat(64).reshape(64, 64)
  for pixels, top, middle in ((drawing, 255, 0), (ramp, 0, 128)):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    kept = make_web_records.prepare_image(file.getvalue(), max_side)
    shown = images.decode(kept)
    side = min(max_side, 64)
    assert shown.shape == (side, side, 3)
    assert abs(shown[0].mean() - top) < 6
    assert abs(shown[side // 2, side // 2].mean() - middle) < 6


@pytest.mark.parametrize(
  ("values", "shown"),
  [
    (np.linspace(0, 1, 64, dtype=np.float32), np.linspace(0, 255, 64)),
    (np.linspace(0, 0.5, 64, dtype=np.float32), np.linspace(0, 127.5, 64)),
    (np.linspace(-3, 9, 64, dtype=np.float32), np.linspace(0, 255, 64)),
    (np.linspace(5, 9e4, 64).astype(np.int32), np.linspace(0, 255, 64)),
  ],
)
def test_pictures_of_32_bits_are_scaled(values, shown):
  """Floats of 0 to 1 as such, others from their least to their largest."""
  file = io.BytesIO()
  Image.fromarray(values.repeat(64).reshape(64, 64)).save(file, "tiff")
  kept = make_web_records.prepare_image(file.getvalue(), 100)
  pixels = images.decode(kept)[:, 32, 0].astype(float)
  assert np.abs(pixels - shown).max() < 4


def test_a_picture_that_is_not_finite_is_refused():
  file = io.BytesIO()
  values = np.full((64, 64), np.nan, np.float32)
  Image.fromarray(values).save(file, "tiff")
  with pytest.raises(UserError, match="not finite"):
    make_web_records.prepare_image(file.getvalue(), 100)


@pytest.mark.parametrize(
  ("line", "images", "message"),
  [
    ('{"image": ', None, r"line 2: got text that is not JSON .*; repair it"),
    ("[1, 2]", None, r"line 2: got '\[1, 2\]', expected an object such as"),
    (
      {**QUESTION, "image": "b.png"},
      None,
      r"line 2: got image '.*b.png', which is no file; correct the example or",
    ),
    ({**QUESTION, "suffix": " "}, None, r"line 2: got \[' '\] as answer"),
    ({**QUESTION, "suffix": []}, None, r"line 2: got \[\] as answer"),
    ({**QUESTION, "suffix": True}, None, r"line 2: got \[True\] as answer"),
    ({**QUESTION, "suffix": {}}, None, r"line 2: got \[{}\] as answer"),
    ({**QUESTION, "suffix": float("nan")}, None, r"line 2: got \[nan\] as an"),
    ({**QUESTION, "image": "a\0.png"}, None, "line 2: got image .*is no file"),
    ("[" * 100_000, None, "line 2: got text that is not JSON"),
    (
      '{"image": "a.png", "prefix": "a", "suffix": "\\ud83d"}',
      None,
      r"line 2: got a text that is not UTF-8",
    ),
    (
      b'{"image": "a.png", "prefix": "a", "suffix": "caf\xe9"}',
      None,
      r"line 2: got text that is not JSON in UTF-8",
    ),
    ({**QUESTION, "prefix": ""}, None, r"line 2: got \[''\] as question"),
    (
      {**QUESTION, "image": "b.png"},
      {"b.png": b"no image"},
      r"line 2: got an image that does not decode .*; repair or remove",
    ),
    (
      {**QUESTION, "image": "b.png"},
      {"b.png": picture(file_format="jpeg")[:-200]},
      r"line 2: got .* not decode .*; repair or remove this example",
    ),
    (
      {**QUESTION, "image": "b.png"},
      {"b.png": picture(1, 5000)},
      r"line 2: got an image of 512 x 1 pixels, expected sides of 8 to",
    ),
  ],
)
def test_too_many_bad_lines_are_named_and_nothing_is_written(
  tmp_path, line, images, message
):
  images = {"a.png": picture(), **(images or {})}
  found = write_jsonl(tmp_path, [QUESTION, line], images)
  with pytest.raises(ValueError, match=message):
    make_web_records.make(found, tmp_path / "out", "n")
  assert not list((tmp_path / "out").glob("[!.]*"))


def test_written_images_decode_as_in_training(tmp_path):
  found = write_jsonl(tmp_path, [QUESTION])
  make_web_records.make(found, tmp_path / "out", "a")
  pixels = images.decode(read(tmp_path / "out")[0].image)
  assert pixels.shape == (30, 40, 3)
  assert pixels[0, 0].tolist() == [255, 0, 0]


def test_written_records_are_not_mixed_with_others(tmp_path):
  out = tmp_path / "out"
  make_web_records.make(write_jsonl(tmp_path, [QUESTION]), out, "a")
  with pytest.raises(UserError, match="expected none of split 'train'"):
    make_web_records.make(write_jsonl(tmp_path, [QUESTION]), out, "b")
  make_web_records.make(write_jsonl(tmp_path, [QUESTION]), out, "a", "val")


def test_every_shard_holds_an_example(tmp_path):
  found = write_jsonl(tmp_path, [QUESTION])
  with pytest.raises(ValueError, match="got 1 examples for 2 shards, expected"):
    make_web_records.make(found, tmp_path / "out", "a", num_shards=2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_jsonl_in_other_encodings(tmp_path, encoding):
  """A mark at the start, Windows' line ends, nulls and numbers."""
  lines = [
    {**QUESTION, "task": None, "language": None, "suffix": 3},
    {**QUESTION, "suffix": ["drei  ", 2.5]},
  ]
  text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
  mark = "\ufeff" if encoding == "utf-16-be" else ""
  (tmp_path / "data.jsonl").write_bytes((mark + text).encode(encoding))
  (tmp_path / "a.png").write_bytes(picture())
  found = web_inputs.read_jsonl(tmp_path / "data.jsonl", tmp_path, DEFAULTS)
  first, second = (each.load() for each in found)
  assert first[1:] == ("answer en where?", ("3",), "", "en")
  assert second.answers == ("drei", "2.5")


def test_half_a_character_of_utf_16_is_one_bad_line(tmp_path):
  """In the middle of the file, and at its end."""
  lines = [json.dumps({**QUESTION, "suffix": text}) for text in "a\u2028bcd"]
  data = ("\n".join(lines) + "\n").encode("utf-16")
  half = data.replace("b".encode("utf-16")[2:] + b'"\0}', b"\x00\xd8" + b'"\0}')
  (tmp_path / "data.jsonl").write_bytes(half[:-1])
  (tmp_path / "a.png").write_bytes(picture())
  found = web_inputs.read_jsonl(tmp_path / "data.jsonl", tmp_path, DEFAULTS)
  made = [make_web_records.record(each, 512) for each in found]
  bad = [isinstance(each, UserError) for each in made]
  assert bad == [False, False, True, False, True]


def test_one_bad_line_among_many_is_counted_and_named(tmp_path, capsys):
  lines = [QUESTION] * 150
  lines[70] = "{"
  found = write_jsonl(tmp_path, lines)
  make_web_records.make(found, tmp_path / "out", "a")
  assert len(read(tmp_path / "out")) == 149
  said = capsys.readouterr().out
  assert "1 of 150 examples were left out" in said and "line 71" in said
  (told,) = (tmp_path / "out").glob("*.skipped.txt")
  assert "line 71" in told.read_text()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
  """The same bytes as at one go; what is on the disk is not read again."""
  monkeypatch.setattr(make_web_records, "CHUNK", 4)
  monkeypatch.setattr(make_web_records, "SAVED", 8)
  lines = [{**QUESTION, "suffix": str(i)} for i in range(30)]
  lines[5] = "{"
  settings = {"num_shards": 3, "max_skipped": 0.2}
  whole = make_web_records.make(
    write_jsonl(tmp_path, lines), tmp_path / "whole", "n", **settings
  )
  loaded = []

  def stops_at(number, found):
    for i, each in enumerate(found):
      if i == number:
        raise KeyboardInterrupt

      def load(each=each, i=i):
        loaded.append(i)
        return each.load()

      yield each._replace(load=load)

  out = tmp_path / "out"
  for number in (13, 22, 99):
    found = stops_at(number, write_jsonl(tmp_path, lines))
    if number == 99:
      paths = make_web_records.make(found, out, "n", **settings)
    else:
      with pytest.raises(KeyboardInterrupt):
        make_web_records.make(found, out, "n", **settings)
  for path, expected in zip(paths, whole, strict=True):
    assert path.read_bytes() == expected.read_bytes()
  # 8 were kept of the first run, 16 of the second.
  assert sorted(loaded) == sorted([*range(12), *range(8, 20), *range(16, 30)])
  assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("bucket", [False, True])
def test_a_run_that_stopped_while_shards_were_put_in_place_goes_on(
  tmp_path, monkeypatch, tokenizer, bucket
):
  """A bucket takes minutes for what a disk renames."""
  lines = [{**QUESTION, "suffix": str(i)} for i in range(7)]
  publish, seen = local_copies.publish, []

  def stops(made, target):
    seen.append(target.name)
    if len(seen) == 2:
      raise KeyboardInterrupt
    publish(made, target)

  monkeypatch.setattr(local_copies, "publish", stops)
  out = "memory://stopped/web" if bucket else str(tmp_path / "out")
  with pytest.raises(KeyboardInterrupt):
    make_web_records.make(write_jsonl(tmp_path, lines), out, "n", num_shards=3)
  with pytest.raises(UserError, match="of split 'train'"):
    make_web_records.make(write_jsonl(tmp_path, lines), out, "other")
  make_web_records.make(write_jsonl(tmp_path, lines), out, "n", num_shards=3)
  assert len(web.open_source(web.WebConfig(out), tokenizer)) == 7


def test_another_input_begins_anew(tmp_path, monkeypatch):
  monkeypatch.setattr(make_web_records, "SAVED", 1)
  bad = write_jsonl(tmp_path, [QUESTION, "{"])
  with pytest.raises(UserError, match="1 of 2 examples"):
    make_web_records.make(bad, tmp_path / "out", "n", source=1)
  good = write_jsonl(tmp_path, [QUESTION, QUESTION, QUESTION])
  make_web_records.make(good, tmp_path / "out", "n", source=2)
  assert len(read(tmp_path / "out")) == 3

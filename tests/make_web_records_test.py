"""data/make_web_records.py and the formats that it reads."""

import io
import json
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data import make_web_records, tfds_writer, web_inputs
from data.make_web_records import detection_answer
from data.web_inputs import Defaults
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import frames, records, web
from rt2_jax.input_pipeline.examples import WebExamples
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import BOS, Tokenizer
from tests import tiny_datasets
from tests.conftest import ROOT

DEFAULTS = Defaults()
TOKENIZER_FILE = ROOT / "data/small_tokenizer.model"
TOKENIZER = Tokenizer.from_file(TOKENIZER_FILE)


def picture(width=40, height=30, file_format="png", orientation=1) -> bytes:
  """Red in its left half as stored, blue in its right half."""
  image = Image.new("RGB", (width, height), "blue")
  image.paste("red", (0, 0, width // 2, height))
  file = io.BytesIO()
  exif = Image.Exif()
  if orientation != 1:
    exif[0x0112] = orientation
  image.save(file, file_format, exif=exif)
  return file.getvalue()


def read(folder) -> list[web.WebExample]:
  """Every example of the training split, through the library's own reader."""
  source = web.open_source(web.WebConfig(str(folder)), TOKENIZER)
  examples = []
  for i in range(len(source)):
    (request,) = source.requests([i])[0]
    (data,) = source.storage.read([request])
    record = records.Record(request.path, request.offset, memoryview(data))
    examples.append(web.parse(record))
  return examples


def write_jsonl(folder, lines, images=None):
  """A JSONL file beside its images; returns what is read from it."""
  images = {"a.png": picture()} if images is None else images
  for name, data in images.items():
    (folder / name).write_bytes(data)
  path = folder / "data.jsonl"
  lines = [x if isinstance(x, str) else json.dumps(x) for x in lines]
  path.write_text("\n".join(lines) + "\n")
  return web_inputs.read_jsonl(path, folder, DEFAULTS)


def write_tar(path, files):
  with tarfile.open(path, "w") as tar:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


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
  for epoch, answer in enumerate(["hier", "dort", "hier"]):
    row = tiny_datasets.row(
      rows, 1, epoch, source.storage.read(source.requests([1])[0])
    )
    assert tokenizer.decode(row.suffix) == answer
    assert row.prefix[row.mask_input][0] == BOS
  assert row.images == (picture(),)


class Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The features of coco_captions that count."""

  VERSION = tfds.core.Version("1.1.0")
  code_path = None

  def _info(self):
    caption = {"id": np.int64, "text": tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "captions": tfds.features.Sequence(caption),
          "image": tfds.features.Image(encoding_format="jpeg"),
          "image/filename": tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, _):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(3):
      texts = [f"caption {i}", f"another {i}"]
      yield (
        i,
        {
          "captions": [{"id": k, "text": text} for k, text in enumerate(texts)],
          "image": io.BytesIO(tiny_datasets.jpeg(i)),
          "image/filename": f"{i}.jpg",
        },
      )


def test_tfds_round_trip(tmp_path):
  builder = Captions(data_dir=tmp_path / "tfds")
  tfds_writer.write_quietly(builder)
  folder = builder.data_path
  found = web_inputs.read_tfds(
    folder, "train", "captions/text", DEFAULTS._replace(task="caption")
  )
  make_web_records.make(found, tmp_path / "out", "coco")
  examples = sorted(read(tmp_path / "out"), key=lambda e: e.answers)
  assert [e.answers for e in examples] == [
    (f"caption {i}", f"another {i}") for i in range(3)
  ]
  for i, example in enumerate(examples):
    assert example.image == tiny_datasets.jpeg(i)  # kept as it was
    assert example[1:2] + example[3:] == (DEFAULTS.question, "caption", "en")
  with pytest.raises(
    ValueError, match="got --answers=captions/txt, expected a path through"
  ):
    next(web_inputs.read_tfds(folder, "train", "captions/txt", DEFAULTS))


def test_webdataset_round_trip(tmp_path):
  fields = {"prefix": "detect cup", "suffix": "<loc0001> cup", "task": "detect"}
  write_tar(
    tmp_path / "1.tar",
    {"x/1.PNG": picture(), "x/1.json": json.dumps(fields).encode()},
  )
  write_tar(
    tmp_path / "0.tar",
    {"0.jpg": picture(file_format="jpeg"), "0.txt": b"a caption"},
  )
  found = web_inputs.read_tars(str(tmp_path / "*.tar"), DEFAULTS)
  make_web_records.make(found, tmp_path / "out", "wds")
  caption, detection = read(tmp_path / "out")
  assert caption[1:3] == (DEFAULTS.question, ("a caption",))
  assert detection[1:4] == ("detect cup", ("<loc0001> cup",), "detect")


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
  written = make_web_records.prepare_image(image, 100, "here")
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
    kept = make_web_records.prepare_image(file.getvalue(), max_side, "here")
    shown = frames.decode_image(kept, "")
    side = min(max_side, 64)
    assert shown.shape == (side, side, 3)
    assert abs(shown[0].mean() - top) < 6
    assert abs(shown[side // 2, side // 2].mean() - middle) < 6


def test_a_32_bit_picture_is_named(tmp_path):
  file = io.BytesIO()
  Image.fromarray(np.ones((64, 64), np.float32)).save(file, "tiff")
  with pytest.raises(ValueError, match="^here: got an image of mode 'F'"):
    make_web_records.prepare_image(file.getvalue(), 100, "here")


@pytest.mark.parametrize(
  ("line", "images", "message"),
  [
    ('{"image": ', None, r"line 2: got text that is not JSON .*; repair it"),
    ("[1, 2]", None, r"line 2: got '\[1, 2\]', expected an object such as"),
    (
      {**QUESTION, "image": "b.png"},
      None,
      r"line 2: got image '.*b.png', which is no file; correct the line or pa",
    ),
    ({**QUESTION, "suffix": " "}, None, r"line 2: got \[' '\] as answer"),
    ({**QUESTION, "suffix": []}, None, r"line 2: got \[\] as answer"),
    ({**QUESTION, "suffix": 3}, None, r"line 2: got \[3\] as answer"),
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
def test_a_bad_line_is_named_and_nothing_is_written(
  tmp_path, line, images, message
):
  images = {"a.png": picture(), **(images or {})}
  found = write_jsonl(tmp_path, [QUESTION, line], images)
  with pytest.raises(ValueError, match=message):
    make_web_records.make(found, tmp_path / "out", "n")
  assert not list((tmp_path / "out").iterdir())


def test_written_images_decode_as_in_training(tmp_path):
  found = write_jsonl(tmp_path, [QUESTION])
  make_web_records.make(found, tmp_path / "out", "a")
  pixels = frames.decode_image(read(tmp_path / "out")[0].image, "")
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


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"0.png": b""}, r"0.tar, 0: got files with the extensions png, expected"),
    ({"0.txt": b"a"}, r"0.tar, 0: got files with the extensions txt, expect"),
    ({"0.json": b"{", "0.png": b""}, r"0.tar, 0: got text that is not JSON"),
  ],
)
def test_a_bad_sample_of_a_tar_is_named(tmp_path, files, message):
  write_tar(tmp_path / "0.tar", files)
  with pytest.raises(ValueError, match=message):
    list(web_inputs.read_tars(str(tmp_path / "*.tar"), DEFAULTS))


def test_a_damaged_tar_is_named(tmp_path):
  with pytest.raises(ValueError, match="which no tar matches"):
    next(web_inputs.read_tars(str(tmp_path / "*.tar"), DEFAULTS))
  (tmp_path / "0.tar").write_bytes(b"no tar" * 100)
  with pytest.raises(ValueError, match="0.tar: got a damaged tar"):
    next(web_inputs.read_tars(str(tmp_path / "0.tar"), DEFAULTS))


def test_boxes_become_locations(tokenizer):
  answer = detection_answer(
    [[0, 0.25, 0.5, 1], [0.1, 0.1, 0.2, 0.2]], ["red cup", "can"]
  )
  assert answer == (
    "<loc0000><loc0256><loc0512><loc1023> red cup ; "
    "<loc0102><loc0102><loc0204><loc0204> can"
  )
  assert tokenizer.encode(answer)[1] == tokenizer.loc(256)


@pytest.mark.parametrize(
  ("boxes", "labels", "message"),
  [
    ([], [], "got 0 boxes and 0 labels"),
    ([[0, 0, 1, 1]], ["a", "b"], "got 1 boxes and 2 labels, expected one"),
    (
      [[0, 0, 1, 1.5]],
      ["a"],
      r"got box \[0.0, 0.0, 1.0, 1.5\], expected y_min",
    ),
    ([[0.5, 0, 0.2, 1]], ["a"], "and min < max"),
    ([[float("nan"), 0, 0.2, 1]], ["a"], "got box"),
  ],
)
def test_a_box_outside_the_image_is_refused(boxes, labels, message):
  with pytest.raises(ValueError, match=message):
    detection_answer(boxes, labels)

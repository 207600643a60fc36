"""LLaVA's and COCO's JSON."""

import json

import pytest

from data import web_json
from rt2_jax.errors import UserError
from tests.tiny_web import DEFAULTS, picture


def test_llava(tmp_path):
  (tmp_path / "a.png").write_bytes(picture())
  turns = [
    {"from": "human", "value": "<image>\nWhat is left?"},
    {"from": "gpt", "value": "Red.\nOnly red."},
    {"from": "human", "value": "And right?"},
    {"from": "gpt", "value": "Blue."},
  ]
  entries = [
    {"id": "0", "image": "a.png", "conversations": turns},
    {"id": "1", "conversations": turns},  # text alone
    {"id": "2", "image": "a.png", "conversations": turns[:1]},
  ]
  (tmp_path / "llava.json").write_text(json.dumps(entries))
  *found, bad = web_json.read_llava(tmp_path / "llava.json", tmp_path, DEFAULTS)
  assert [each.load()[1:3] for each in found] == [
    ("What is left?", ("Red.\nOnly red.",)),
    ("And right?", ("Blue.",)),
  ]
  assert bad.where.endswith("entry 2, turn 0")
  with pytest.raises(UserError, match="expected a question and an answer"):
    bad.load()


@pytest.mark.parametrize(
  ("speakers", "pairs"),
  [
    (["system", "human", "gpt"], [("1", "2")]),
    (["user", "assistant"], [("0", "1")]),
    (["gpt", "human", "gpt"], [None]),
    (["human", "human"], [None]),
    ("no list", [None]),
    (None, [None]),
  ],
)
def test_speakers_tell_questions_from_answers(tmp_path, speakers, pairs):
  (tmp_path / "a.png").write_bytes(picture())
  turns = speakers
  if isinstance(speakers, list):
    turns = [{"from": who, "value": str(i)} for i, who in enumerate(speakers)]
  entries = [{"image": "a.png", "conversations": turns}]
  (tmp_path / "llava.json").write_text(json.dumps(entries))
  found = web_json.read_llava(tmp_path / "llava.json", tmp_path, DEFAULTS)
  for each, pair in zip(found, pairs, strict=True):
    if pair:
      assert each.load()[1:3] == (pair[0], (pair[1],))
      continue
    with pytest.raises(UserError, match="human, then gpt"):
      each.load()


def coco(tmp_path, **fields):
  """COCO's JSON about one picture of 40 x 30, read."""
  image = {"id": 7, "file_name": "a.png", "height": 30, "width": 40}
  (tmp_path / "a.png").write_bytes(picture())
  content = {"images": [image]} | fields
  (tmp_path / "coco.json").write_text(json.dumps(content))
  return list(web_json.read_coco(tmp_path / "coco.json", tmp_path, DEFAULTS))


def test_coco_captions_and_boxes(tmp_path):
  captions = [
    {"image_id": 7, "caption": "Two colours. "},
    {"image_id": 8, "caption": "Of a picture that is not there"},
    {"image_id": 7, "caption": "A flag."},
  ]
  found, bad = coco(tmp_path, annotations=captions)
  assert found.load()[1:3] == (
    DEFAULTS.question,
    ("Two colours.", "A flag."),
  )
  with pytest.raises(UserError, match="not among the images"):
    bad.load()
  boxes = [
    {"image_id": 7, "category_id": 3, "bbox": [0, 0, 20, 30]},
    {"image_id": 7, "category_id": 1, "bbox": [20, 15, 20.01, 15]},
    {"image_id": 7, "category_id": 3, "bbox": [10, 0, 10, 15]},
  ]
  names = [{"id": 1, "name": "blue"}, {"id": 3, "name": "red"}]
  (found,) = coco(tmp_path, annotations=boxes, categories=names)
  example = found.load()
  assert example[1:4] == (
    "detect red ; blue",
    (
      "<loc0000><loc0000><loc1023><loc0512> red ; "
      "<loc0512><loc0512><loc1023><loc1023> blue ; "
      "<loc0000><loc0256><loc0512><loc0512> red",
    ),
    "detect",
  )
  (found,) = coco(tmp_path, annotations=boxes, categories=names[:1])
  with pytest.raises(UserError, match="cannot be read"):
    found.load()
  with pytest.raises(UserError, match="expected COCO's images"):
    coco(tmp_path, annots=[])

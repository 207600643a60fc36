"""Packing pictures, and questions about them."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from data import make_pictures, make_web_pictures
from data.picture_questions import SKILLS, Words
from data.picture_scenes import Drawn
from rt2_jax.byte_ranges import open_storage
from rt2_jax.envs.tabletop import pictures
from rt2_jax.envs.tabletop.descriptions import NUMBERS
from rt2_jax.input_pipeline import records, web
from rt2_jax.prompt import Prompt
from rt2_jax.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.envs.tabletop.rendering import PICTURES

# ------------------------------------------------------------------- packing


def package(folder, name, files):
  """A package as npm packs it."""
  with tarfile.open(folder / name, "w:gz") as tar:
    for path, data in files.items():
      info = tarfile.TarInfo(f"package/{path}")
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def png(colour) -> bytes:
  data = io.BytesIO()
  Image.new("RGBA", (64, 64), colour).save(data, "png")
  return data.getvalue()


def packages(folder, second="blue"):
  """Three small packages with pictures of an apple and of Japan's flag."""
  index = [
    {"unified": "1F34E", "image": "a.png"},
    {"unified": "1F1EF-1F1F5", "image": "b.png"},
  ]
  for _, (name, where) in make_pictures.STYLES.items():
    entries = [entry | {f"has_img_{where}": True} for entry in index]
    files = {"emoji.json": json.dumps(entries).encode()}
    for image, colour in (("a.png", "red"), ("b.png", second)):
      files[f"img/{where}/64/{image}"] = png(colour)
    package(folder, name, files)
  tags = [{"emoji": "🍎", "tags": ["fruit", "diet"]}, {"emoji": "🇯🇵"}]
  package(
    folder,
    make_pictures.KEYWORDS,
    {"en/data.json": json.dumps(tags).encode()},
  )
  facts = folder / "facts.toml"
  facts.write_text(
    '[fruit]\napple = {emoji="🍎", colour="red"}\n[flag]\n'
    '"flag of Japan" = {emoji="🇯🇵", capital="Tokyo"}\n'
  )
  return facts


def test_pack_and_load(tmp_path):
  facts = packages(tmp_path)
  path = make_pictures.make(tmp_path, tmp_path / "out.zip", facts)
  known = pictures.Pictures.load(path)
  assert list(known.concepts) == ["apple", "flag of Japan"]
  assert known["apple"].keywords == ("fruit", "diet")
  assert known["flag of Japan"].facts == {"capital": "Tokyo"}
  red, blue = (known.picture(name, "noto") for name in known.concepts)
  assert (red.mean((0, 1)) - [255, 0, 0, 255]).max() < 3
  assert (blue.mean((0, 1)) - [0, 0, 255, 255]).max() < 3
  again = make_pictures.make(tmp_path, tmp_path / "again.zip", facts)
  assert path.read_bytes() == again.read_bytes()


def test_the_committed_file_holds_the_committed_facts():
  known = pictures.load(PICTURES)
  facts = make_pictures.read_facts()
  assert [c["name"] for c in facts] == list(known.concepts)
  for line in facts:
    concept = known[line["name"]]
    assert (concept.category, concept.facts) == (
      line["category"],
      line["facts"],
    )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('[a]\nx = {colour="red"}', "'x': got the fields colour, expected 'emoji'"),
    ('[a]\nx = {emoji="🍎", color="red"}', "'x': got the fields emoji, color"),
    (
      '[a]\nx = {emoji="🍎"}\n[b]\nx = {emoji="🍐"}',
      "got 'x' twice, expected a name of its own",
    ),
    ('[a]\nx = {emoji="🦄"}', "got no picture for 1F984; remove these lines"),
  ],
)
def test_bad_facts(tmp_path, text, message):
  facts = packages(tmp_path)
  facts.write_text(text)
  with pytest.raises(ValueError, match=message):
    make_pictures.make(tmp_path, tmp_path / "out.zip", facts)
  assert not (tmp_path / "out.zip").exists()


def test_pictures_that_look_the_same(tmp_path):
  facts = packages(tmp_path, second="red")
  with pytest.raises(ValueError, match="look the same: .*apple.*Japan"):
    make_pictures.make(tmp_path, tmp_path / "out.zip", facts)


def test_a_missing_package(tmp_path):
  with pytest.raises(
    ValueError, match="without emojibase.*npm pack emojibase-data@17.0.0"
  ):
    make_pictures.make(tmp_path, tmp_path / "out.zip")


# ----------------------------------------------------------------- questions


def ask(skill, count, seed):
  """A question, and its answer for a picture with all things in a row."""
  known = pictures.load(PICTURES)
  words = Words(known, tuple(known.concepts), np.random.default_rng(seed), 16)
  question = SKILLS[skill](words, count)
  boxes = tuple(
    (0.4, 0.2 * i, 0.55, 0.2 * i + 0.15) for i in range(len(question.shown))
  )
  names = tuple(question.shown)
  drawn = Drawn(np.zeros(()), names, boxes, "board", hand=(0.9, 0.9))
  return known, question, *question.ask(drawn)


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("count", [1, 3])
def test_every_skill_asks_for_what_is_shown(skill, count):
  for seed in range(50):
    _, question, text, answer = ask(skill, count, seed)
    assert len(set(question.shown)) == len(question.shown) <= max(count, 2)
    assert text and answer
    if "which one" in text:
      assert answer == question.shown[0]


def test_only_one_thing_fits_a_description():
  for seed in range(200):
    known, question, text, _ = ask("point_by_fact", 4, seed)
    target, *others = (known[name] for name in question.shown)
    phrase = text.removeprefix("point to the ")
    if colour := re.fullmatch(r"(\w+) thing", phrase):
      assert target.facts["colour"] == colour[1]
      assert all(o.facts["colour"] != colour[1] for o in others)
    if phrase in known.categories:
      assert target.category == phrase not in {o.category for o in others}


@pytest.mark.parametrize("seed", range(30))
def test_sums_are_right(seed):
  known, question, text, answer = ask("arithmetic", 2, seed)
  values = [known[n].facts.get("value") for n in question.shown]
  if "sum of the numbers" in text:
    assert int(answer) == sum(values)
  else:
    first, sign, second = re.search(r"(\w+) (plus|minus) (\w+)", text).groups()
    first, second = NUMBERS.index(first), NUMBERS.index(second)
    assert values[0] == first + (second if sign == "plus" else -second)


def test_places_are_coarse_words():
  _, _, text, answer = ask("point", 1, 0)
  assert text.startswith("point to the ")
  assert answer == "<loc0480><loc0096>"  # y 0.475, x 0.075 in 16 bins
  _, question, _, answer = ask("detect", 1, 0)
  assert answer == f"<loc0384><loc0000><loc0576><loc0192> {question.shown[0]}"
  tokenizer = Tokenizer.from_file(ROOT / "data/small_tokenizer.model")
  assert tokenizer.encode(answer)[:2] == [tokenizer.loc(384), tokenizer.loc(0)]


def test_a_plan_is_what_a_robot_would_write():
  """The same ids, up to what an action follows."""
  tokenizer = Tokenizer.from_file(ROOT / "data/picture_tokenizer.model")
  prompt = Prompt(tokenizer, 32, 32, plan_length=16)
  for seed in range(50):
    _, question, text, answer = ask("plan", 3, seed)
    assert text.startswith("Q: what action should the robot take to ")
    words = answer.removeprefix("Plan: ")
    assert words == f"{question.shown[0]} <loc0480><loc0096>"
    ids = [*tokenizer.encode(answer), *prompt.plan_end]
    assert ids == prompt.plan_ids(words).tolist()


def test_too_few_concepts_for_a_skill():
  known = pictures.load(PICTURES)
  words = Words(known, ("bagel",), np.random.default_rng(0), 16)
  with pytest.raises(ValueError, match="got 1 concepts, none.*--skills"):
    SKILLS["arithmetic"](words, 1)


# --------------------------------------------------------------- web records


SETTINGS = {
  "seed": 0,
  "image_size": 48,
  "concepts": [],
  "scenes": ["card", "board", "table"],
  "styles": ["noto", "twemoji"],
  "things": (1, 3),
  "location_bins": 16,
}


def write(folder, **change):
  skills = change.pop("skills", ["name", "detect"])
  examples = {"train": 6, "val": 3}
  settings = SETTINGS | change
  return make_web_pictures.make(folder, skills, examples, 1, 1, **settings)


def test_web_records(tmp_path):
  paths = write(tmp_path)
  assert [p.parent.name for p in paths] == ["name"] * 2 + ["detect"] * 2
  read = [
    web.parse(record)
    for record in records.read_records(
      open_storage(str(tmp_path / "detect")), str(paths[2])
    )
  ]
  assert len(read) == 6
  for example in read:
    name = example.question.removeprefix("detect ")
    assert re.fullmatch(rf"(<loc\d{{4}}>){{4}} {name}", example.answers[0])
    assert example.task == "detect" and example.language == "en"
    image = np.asarray(Image.open(io.BytesIO(example.image)))
    assert image.shape == (48, 48, 3)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"skills": ["nam"]}, "'nam' for skill, expected one of: name"),
    ({"concepts": ["aple"]}, "'aple' for object.*'apple'"),
    ({"styles": ["oil"]}, "'oil' for art style"),
    ({"scenes": ["sea"]}, "'sea' for scene, expected one of: card"),
    ({"things": (3, 2)}, r"got things 3\.\.2, expected 1 <= least"),
  ],
)
def test_settings_that_make_no_sense(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    write(tmp_path, **change)
  assert not list(tmp_path.iterdir())

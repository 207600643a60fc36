"""What the data programs draw; this file may not import TensorFlow."""

import io

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from data import (
  make_picture_tokenizer,
  make_tabletop,
  make_web_pictures,
  picture_scenes,
)
from data.picture_questions import SKILLS, Words
from rt2_jax.envs.tabletop import pictures
from rt2_jax.envs.tabletop.instructions import FAMILIES
from rt2_jax.tokenizer import Tokenizer
from tests.envs.tabletop.rendering import PICTURES, rendered

DEMONSTRATIONS = {
  "seed": 0,
  "image_size": 48,
  "families": FAMILIES,
  "concepts": ["apple", "dog", "car", "house", "drum", "tree"],
  "style": "noto",
  "distractors": [0, 1],
}
WEB = {
  "seed": 0,
  "image_size": 48,
  "concepts": [],
  "scenes": ["card", "board", "table"],
  "styles": ["noto", "twemoji"],
  "things": (1, 3),
  "location_bins": 16,
}


@rendered
def test_an_episode_is_a_function_of_its_number():
  def look(number, wander=0.2):
    settings = DEMONSTRATIONS | {"wander": wander}
    steps = make_tabletop.episode(settings, "val", number)[0]["steps"]
    images = [
      np.asarray(Image.open(io.BytesIO(s["observation"]["image"])))
      for s in steps
    ]
    return images, np.stack([s["action"] for s in steps])

  (images, actions), (same, again) = look(1), look(1)
  np.testing.assert_array_equal(actions, again)
  np.testing.assert_array_equal(images, same)
  assert not np.array_equal(look(2)[1], actions)
  straight = look(1, wander=0.0)[1]  # the first attempt succeeds in both
  np.testing.assert_array_equal(straight[0], actions[0])  # the expert's own


@pytest.mark.parametrize("kind", picture_scenes.SCENES)
@rendered
def test_scenes_show_the_things_in_their_boxes(kind):
  known = pictures.load(PICTURES)
  names = ["black square", "red heart", "dog"]
  names = names[: picture_scenes.most_things(kind)]
  rng = np.random.default_rng(0)
  dark = []
  for _ in range(8):
    drawn = picture_scenes.draw(kind, known, names, "noto", 64, rng)
    assert drawn.image.shape == (64, 64, 3) and drawn.image.dtype == np.uint8
    assert sorted(drawn.names) == sorted(names)
    middles = [box[1] + box[3] for box in drawn.boxes]
    assert middles == sorted(middles)
    box = np.array(drawn.boxes[drawn.names.index("black square")]) * 64
    y, x = round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2)
    dark.append(drawn.image[y, x].max() < 90)
  assert sum(dark) >= 7  # the hand may hide one


@rendered
def test_an_example_is_a_function_of_its_number():
  def look(split, number):
    return make_web_pictures.example(WEB, "fact", split, number)

  assert look("train", 5) == look("train", 5)
  assert len({look(s, n) for s in ("train", "val") for n in range(5)}) == 10


@rendered
def test_a_grid_names_what_its_cells_show():
  known = pictures.load(PICTURES)
  words = Words(known, ("dog", "red heart"), np.random.default_rng(0), 16)
  question = SKILLS["grid"](words, 2)
  assert sorted(question.shown) == ["dog", "red heart"]
  names = ("dog", "red heart")
  boxes = ((0.0, 0.0, 0.5, 0.5), (0.8, 0.8, 0.95, 0.95))
  drawn = picture_scenes.Drawn(
    np.zeros((64, 64, 3)), names, boxes, "table", hand=(0.6, 0.9)
  )
  _, answer = question.ask(drawn)
  cells = np.reshape(answer.split(" ")[1:], (4, 4))
  assert (cells[:2, :2] == "dog").all()
  assert cells[3, 3] in ("red", "heart")
  assert cells[2, 3] == "hand"
  assert (cells == "nothing").sum() == 10
  assert SKILLS["hand"](words, 2).ask(drawn)[1] == "<loc0608><loc0928>"


@rendered
def test_the_hand_hovers_over_its_point_of_the_table():
  """A dark disc on the table marks it, and the question needs a table."""
  known = pictures.load(PICTURES)
  dark = 0
  for seed in range(8):
    rng = np.random.default_rng(seed)
    drawn = picture_scenes.draw("table", known, ["dog"], "noto", 96, rng)
    y, x = (round(v * 95) for v in drawn.hand)
    dark += drawn.image[y, x].max() < 90
  assert dark >= 6  # a thing may hide it
  assert SKILLS["hand"](Words(known, ("dog",), rng, 16), 1).kind == "table"
  flat = picture_scenes.draw("board", known, ["dog"], "noto", 32, rng)
  assert flat.hand is None


@rendered
def test_boards_find_room_for_all_their_things():
  known = pictures.load(PICTURES)
  names = list(known.concepts)[: picture_scenes.most_things("board")]
  for seed in range(20):
    rng = np.random.default_rng(seed)
    drawn = picture_scenes.draw("board", known, names, "noto", 32, rng)
    assert sorted(drawn.names) == sorted(names)


def test_the_committed_pieces_hold_every_word_of_the_pictures():
  known = pictures.load(PICTURES)
  tokenizer = Tokenizer.from_file(make_picture_tokenizer.DEFAULT_OUTPUT)
  assert tokenizer.vocab_size == 5504
  for concept in known.concepts.values():
    for word in concept.name.split():
      assert len(tokenizer.encode(f" {word}")) == 1
    assert len(tokenizer.encode(concept.name)) <= len(concept.name.split()) + 1
  prompt = "Q: what action should the robot take to pick up the dog? A:"
  assert len(tokenizer.encode(prompt)) == 6
  assert len(tokenizer.encode(" nothing nothing red")) == 3  # one for each cell
  assert len(tokenizer.encode(". Action:")) == 1


@rendered
def test_every_word_that_should_be_whole_is_a_piece():
  known = pictures.load(PICTURES)
  words = make_picture_tokenizer.whole_words(known)
  tokenizer = sentencepiece.SentencePieceProcessor(
    model_file=str(make_picture_tokenizer.DEFAULT_OUTPUT)
  )
  unknown = tokenizer.unk_id()
  assert unknown not in map(tokenizer.piece_to_id, words)

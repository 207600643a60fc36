"""Trains the tokenizer of the small models that know this project's pictures.

  python -m data.make_picture_tokenizer    # from the root of the repository

makes `data/picture_tokenizer.model`: as data/make_tokenizer.py has it, but
every word of a picture's name and facts, of a robot's instruction and of a
question is one piece, and so are the fixed words of a prompt. A small model has
no capacity to spare for spelling, and short prompts make cheap steps. Keywords
and plain English share what is left; the 256 action tokens live there.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece
from absl import app, flags

from data import make_tokenizer, tokenizer_corpus
from data.make_web_pictures import PICTURES
from data.picture_questions import SKILLS, Question, Words
from data.picture_scenes import Drawn
from launch import program
from rt2_jax.envs.tabletop import pictures
from rt2_jax.envs.tabletop.instructions import SIDES, TEMPLATES
from rt2_jax.envs.tabletop.pictures import Pictures
from rt2_jax.prompt import PLAN_END, PLAN_START, ROBOT_TEMPLATE
from rt2_jax.storage import locate, write

VOCABULARY_SIZE = 4352  # with <loc> and <seg>: 5504, a multiple of 128
DEFAULT_OUTPUT = Path(__file__).with_name("picture_tokenizer.model")
PROMPTS = (
  *ROBOT_TEMPLATE.split(" {instruction}"),
  *(f"Answer in {language}:" for language in ("en", "de", "fr", "es")),
  "Generate caption in en",
  PLAN_START.strip(),
  PLAN_END,
)
# Plans have the words of `PROMPTS`, of instructions and of other questions.
ASKED = [skill for skill in SKILLS if skill != "plan"]
_QUESTIONS = 3000  # of each skill, to find out which words they use
_ENGLISH = 3  # how often plain English is repeated


def questions(known: Pictures, skills: Iterable[str]) -> Iterator[str]:
  """Prompts and answers, without places."""
  rng = np.random.default_rng(0)
  words = Words(known, tuple(known.concepts), rng, location_bins=16)
  for skill in skills:
    for _ in range(_QUESTIONS):
      question = SKILLS[skill](words, int(rng.integers(1, 5)))
      for text in question.ask(not_drawn(question)):
        yield re.sub(r"<loc\d+>", "", text)


def not_drawn(question: Question) -> Drawn:
  """Makes a scene for its words alone: no pixels, all things in one place."""
  boxes = ((0.0, 0.0, 0.5, 0.5),) * len(question.shown)
  names, hand = tuple(question.shown), (0.9, 0.9)
  return Drawn(np.zeros((0, 0, 3)), names, boxes, "table", hand)


def whole_words(known: Pictures) -> list[str]:
  """Lists the words that are one piece each, as SentencePiece writes them.

  With the space before it; what can begin a text also without one.
  """
  names = list(known.concepts)
  facts = [
    str(value)
    for concept in known.concepts.values()
    for value in (concept.category, *concept.facts.values())
  ]
  instructions = [
    re.sub(r"{\w+}", "", text)
    for choices in (*TEMPLATES.values(), *SIDES.values())
    for text in choices
  ]
  # Keywords are too many.
  asked = list(
    questions(known, [skill for skill in ASKED if skill != "keyword"])
  )
  first = {text.split()[0] for text in (*names, *instructions)}
  first |= {"detect", "point"}
  later = {
    word
    for text in (*names, *facts, *instructions, *asked)
    for word in re.sub(r"[,?!:]", " ", text).split()
  }
  return sorted(first) + [f"▁{word}" for word in sorted(later)]


def corpus(known: Pictures) -> list[str]:
  """Collects the text from which the pieces beside `whole_words` are learnt."""
  keywords = [
    word for concept in known.concepts.values() for word in concept.keywords
  ]
  return [
    *questions(known, ASKED),
    *keywords,
    *(f" {word}" for word in keywords),
    *tokenizer_corpus.plain_english() * _ENGLISH,
    " ".join(map(chr, range(32, 127))),
  ]


@program.main
def main():
  output = locate(flags.FLAGS.output, "--output")
  known = pictures.load(PICTURES)
  fixed = [text.replace(" ", "▁") for text in PROMPTS]
  model = make_tokenizer.train(
    corpus(known), VOCABULARY_SIZE, [*fixed, *whole_words(known)]
  )
  write(output, model)
  tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
  make_tokenizer.check_round_trip(
    tokenizer, [*questions(known, ASKED), "  two  spaces\n", "grüße 你好 🤖"]
  )
  names = tokenizer.encode(list(known.concepts))
  print(
    f"{output}: {len(model) / 1000:.1f} kB, {tokenizer.get_piece_size()} "
    f"pieces, round trip exact; {np.mean([len(ids) for ids in names]):.2f} "
    "tokens in a name"
  )


if __name__ == "__main__":
  flags.DEFINE_string("output", str(DEFAULT_OUTPUT), "Where to write the model")
  app.run(main)

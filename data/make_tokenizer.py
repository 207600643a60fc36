"""Trains the small tokenizer that stands in for Gemma's where that is absent.

  python -m data.make_tokenizer            # from the root of the repository

makes `data/small_tokenizer.model`, a SentencePiece unigram model of 2,048
pieces that keeps Gemma's conventions: <pad> <eos> <bos> <unk> are 0 1 2 3,
unknown characters fall back to bytes, every digit and every space can stand
alone, no space is added or dropped, and "\\n" is one piece. Tests, the quick
start and the examples use it; a real run brings Gemma's own file.

It learns from two sources. Sentences spelled out below, the words of tabletop
robots and of image questions, make prompts short. Plain English, from the
language reference inside every CPython, fills the rest of the vocabulary with
ordinary words that no robot prompt uses: the 256 action tokens live there.
That reference changes with Python's version; the committed file was made with
CPython 3.11.7, and training on the same text gives the same pieces.
"""

import hashlib
import io
import itertools
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data import topics

import sentencepiece
from absl import app, flags

from rt2_jax.errors import UserError
from rt2_jax.local_files import local_path, write

VOCABULARY_SIZE = 2048
DEFAULT_OUTPUT = Path(__file__).with_name("small_tokenizer.model")

# How often each kind of sentence is repeated, against plain English once.
INSTRUCTION_WEIGHT = 6
QUESTION_WEIGHT = 2


def words(text: str) -> list[str]:
  """The items of a comma-separated list; lines may break anywhere in it."""
  return " ".join(text.split()).split(", ")


COLOURS = words("""
  red, green, blue, yellow, orange, purple, pink, brown, black, white, grey,
  silver, light, dark
""")
SHAPES = words("""
  can, block, triangle, star, disc, square, circle, cube, ball, cylinder, cone,
  ring, moon, heart, hexagon, pentagon, rectangle, box
""")
OBJECTS = words("""
  carrot, plate, cup, pot, lid, spoon, fork, knife, spatula, ladle, towel,
  cloth, sponge, bowl, pan, mug, glass, bottle, water bottle, coke can, pepsi
  can, 7up can, redbull can, apple, orange, banana, lemon, lime, eggplant,
  corn, potato, sweet potato, mushroom, tomato, pepper, onion, strawberry,
  cheese, bread, egg, sushi, croissant, pear, peach, grapes, green jalapeno
  chip bag, rice chip bag, brown chip bag, rxbar chocolate, rxbar blueberry,
  energy bar, soup can, paper, pen, marker, book, brush, scissors, hammer,
  screwdriver, toy, toy dinosaur, phone, remote, keys, bag, tissue box, tape,
  kettle, jar, tray, whisk, peeler, pillow, shoe
""")
PLACES = words("""
  plate, bowl, pot, pan, sink, counter, table, stove, burner, drying rack,
  basket, box, tray, towel, top drawer, middle drawer, bottom drawer,
  microwave, fridge, cutting board, cabinet, shelf, oven, toaster
""")
RELATIONS = words("""
  on, in, into, under, behind, near, next to, in front of, to the left of, to
  the right of, above, below, between, beside, on top of, away from, inside,
  from, at the edge of, close to, far from
""")
NUMBERS = words("""
  zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven,
  twelve
""")
EXACT_INSTRUCTIONS = (
  "put carrot on plate",
  "put cup from counter or drying rack into sink",
  "turn lever vertical to front",
  "flip pot upright which is in sink",
)

# {o} {p} an object and another, {l} {m} a place and another, {r} a relation,
# {c} {d} a colour and another, {s} {t} a shape and another, {n} a number.
INSTRUCTIONS = (
  # RT-1
  "pick {o}",
  "pick {c} {s}",
  "pick up the {c} {s}",
  "move {o} near {p}",
  "move {c} {s} near {d} {t}",
  "place {o} upright",
  "knock {o} over",
  "open {l}",
  "close {l}",
  "pick {o} from {l} and place on counter",
  "place {o} into {l}",
  "bring me the {o}",
  # Bridge
  "put {o} on {l}",
  "put {o} {r} {l}",
  "put {o} from {l} or {m} into sink",
  "take {o} out of {l}",
  "move the {o} to the {l}",
  "pick up {o} from {l} and put it {r} the {p}",
  "turn lever vertical to front",
  "turn lever vertical to distractors",
  "flip {o} upright which is in sink",
  "turn faucet front to left",
  "fold the {o} from the right to the left",
  "put lid on {l}",
  "stack the {c} {s} on the {d} {t}",
  "wipe the {l} with {o}",
  "sweep into pile",
  "slide the {o} to the {l}",
  # Language-Table
  "push the {c} {s} to the {d} {t}",
  "push the {c} {s} {r} the {d} {t}",
  "move the {c} {s} towards the {d} {t}",
  "separate the {c} {s} from the {d} {t}",
  "slide the {c} {s} to the top right corner of the board",
  "point the arm at the {c} {s} in the centre",
  "nudge the {c} {s} slightly up and to the left",
)
ROBOT_FRAMES = (
  "Q: what action should the robot take to {}? A:",
  "Q: what action should the robot take to {}? A:",
  "Instruction: {}. Plan: pick {}. Action:",
  "Instruction: {} Plan: {} Action: 1 128 91 241 5 101 127 217",
  "{}",
)
QUESTIONS = (
  "Generate caption in en",
  "a photo of a {c} {o} {r} a {d} {p}",
  "a {c} {s} {r} a {d} {t} on the {l}",
  "there are {n} {c} {s}s and a {d} {t} in the image",
  "the picture shows a robot arm and a {o} on a wooden {l}",
  "Answer in en: what colour is the {s}?",
  "Answer in en: what colour is the {o} {r} the {p}?",
  "Answer in en: which shape is {r} the {c} {s}?",
  "Answer in en: how many {s}s are there?",
  "Answer in en: is there a {o} {r} the {p}? yes",
  "Answer in en: is the {c} {s} {r} the {d} {t}? no",
  "Q: what is {r} the {o}? A: the {p}",
  "Q: where is the {c} {s}? A: {r} the {d} {t}",
  "Q: what is the small object in the image? A: a large {c} {o}",
  "Q: how many {c} objects are there? A: {n}",
  "Q: Which object is the {s} closest to? A: the {o}",
  "Q: what should the robot do to get the {o}? A: open the {l}",
  "Answer in en: what is the robot doing? it is holding the {o}",
)


def fill(templates: Iterable[str], count: int) -> Iterator[str]:
  """Yields `count` sentences per template, walking through every word list.

  The strides are coprime to the lists' lengths, so that every word of a list
  comes equally often, beside ever different neighbours.
  """
  pick = itertools.count()
  for template in templates:
    for _ in range(count):
      k = next(pick)
      yield template.format(
        o=OBJECTS[k % len(OBJECTS)],
        p=OBJECTS[(7 * k + 3) % len(OBJECTS)],
        l=PLACES[(5 * k + 1) % len(PLACES)],
        m=PLACES[(7 * k + 2) % len(PLACES)],
        r=RELATIONS[(5 * k) % len(RELATIONS)],
        c=COLOURS[(3 * k) % len(COLOURS)],
        d=COLOURS[(5 * k + 1) % len(COLOURS)],
        s=SHAPES[(5 * k) % len(SHAPES)],
        t=SHAPES[(7 * k + 2) % len(SHAPES)],
        n=NUMBERS[k % len(NUMBERS)],
      )


def robot_prompts() -> list[str]:
  """Every robot sentence of the corpus: instructions in each of the frames."""
  instructions = [*EXACT_INSTRUCTIONS * 10, *fill(INSTRUCTIONS, count=80)]
  return [
    frame.format(*[instruction] * frame.count("{}"))
    for instruction in instructions
    for frame in ROBOT_FRAMES
  ]


def plain_english() -> list[str]:
  """The prose paragraphs of Python's language reference, markup removed."""
  paragraphs = [
    " ".join(paragraph.split())
    for _, text in sorted(topics.topics.items())
    for paragraph in text.split("\n\n")
    if not paragraph.startswith((" ", ">>>"))  # indented text is mostly code
  ]
  prose = [re.sub(r"[^A-Za-z0-9 .,;:?!'()-]", "", p) for p in paragraphs]
  return [p for p in prose if len(re.findall(r"[a-z ]", p)) > 0.85 * len(p)]


def lexicon(sentences: Iterable[str]) -> list[str]:
  """Every word of the sentences alone, with and without the space before it.

  The trainer proposes as pieces only strings that go on in more than one way.
  In a template a word always meets the same next word, so it would never be
  proposed; here it meets the end of a sentence instead.
  """
  words = sorted({w for s in sentences for w in re.findall("[A-Za-z]+", s)})
  return words + [f" {word}" for word in words]


def corpus() -> list[str]:
  """All training sentences, each as often as it counts; a pure function."""
  prompts, questions = robot_prompts(), list(fill(QUESTIONS, count=80))
  printable_ascii = map(chr, range(32, 127))
  return [
    *prompts * INSTRUCTION_WEIGHT,
    *questions * QUESTION_WEIGHT,
    *lexicon(prompts + questions),
    *plain_english(),
    " ".join(printable_ascii),
  ]


def fingerprint(sentences: Sequence[str]) -> str:
  """Says which corpus this is: the same corpus trains the same pieces."""
  return hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16]


def train(
  sentences: Sequence[str],
  vocabulary_size: int = VOCABULARY_SIZE,
  whole: Sequence[str] = (),
) -> bytes:
  """Trains the model on one thread, deterministically; returns its file.

  Args:
    sentences: what the pieces are learnt from.
    vocabulary_size: how many there are.
    whole: pieces that there shall be in any case.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=model,
    model_type="unigram",
    vocab_size=vocabulary_size,
    num_threads=1,
    minloglevel=2,
    # Gemma's conventions.
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    unk_piece="<unk>",
    user_defined_symbols=["\n", *whole],
    byte_fallback=True,
    split_digits=True,
    add_dummy_prefix=False,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    character_coverage=1.0,
  )
  return model.getvalue()


def ordinary_pieces(
  tokenizer: sentencepiece.SentencePieceProcessor,
) -> list[int]:
  """Ids of printable, unambiguous words: no control, byte or added piece."""

  def is_ordinary(i: int) -> bool:
    word = tokenizer.id_to_piece(i).replace("▁", "")
    special = (
      tokenizer.is_control(i)
      or tokenizer.is_byte(i)
      or tokenizer.is_unknown(i)
      or word == "\n"
    )
    one_to_one = tokenizer.piece_to_id(tokenizer.id_to_piece(i)) == i
    return not special and word != "" and word.isprintable() and one_to_one

  return [i for i in range(tokenizer.get_piece_size()) if is_ordinary(i)]


def rare_pieces(
  tokenizer: sentencepiece.SentencePieceProcessor,
) -> list[int]:
  """Ordinary pieces that no robot prompt of the corpus is written with."""
  used = set().union(*tokenizer.encode(robot_prompts()))
  return [i for i in ordinary_pieces(tokenizer) if i not in used]


def check_round_trip(
  tokenizer: sentencepiece.SentencePieceProcessor, sentences: Iterable[str]
) -> None:
  """Raises unless every sentence survives encode and decode unchanged."""
  for sentence in sentences:
    decoded = tokenizer.decode(tokenizer.encode(sentence))
    if decoded != sentence:
      raise UserError(
        f"round trip: got {decoded!r}, expected {sentence!r}; a trainer option "
        "that rewrites text (normalisation, spaces) is on in train()"
      )


def report(tokenizer: sentencepiece.SentencePieceProcessor) -> str:
  """Says how well the tokenizer does what it is for."""
  prompts = [p for p in robot_prompts() if p.startswith("Q:")]
  lengths = [len(ids) for ids in tokenizer.encode(prompts)]
  example = ROBOT_FRAMES[0].format(EXACT_INSTRUCTIONS[0])
  lines = [
    f"{tokenizer.get_piece_size()} pieces, of which "
    f"{len(ordinary_pieces(tokenizer))} ordinary and "
    f"{len(rare_pieces(tokenizer))} of these in no robot prompt",
    f"{sum(lengths) / len(lengths):.1f} tokens per robot prompt on average, "
    f"{max(lengths)} at most",
  ]
  for text in (example, *EXACT_INSTRUCTIONS):
    pieces = tokenizer.encode(text, out_type=str)
    lines.append(f"{len(pieces):4d}  {' '.join(pieces)}")
  return "\n".join(lines)


def main(_):
  try:
    output = local_path(flags.FLAGS.output, "--output")
  except UserError as error:
    sys.exit(str(error))
  sentences = corpus()
  print(
    f"training on {len(sentences)} sentences, corpus {fingerprint(sentences)} "
    f"(CPython {platform.python_version()})"
  )
  model = train(sentences)
  tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
  check_round_trip(
    tokenizer, [*robot_prompts(), "  two  spaces\nnew line\n", "grüße 你好 🤖"]
  )
  write(output, model)
  print(f"{output}: {len(model) / 1000:.1f} kB, round trip exact")
  print(report(tokenizer))


if __name__ == "__main__":
  # Flags are defined only when this file is the program: absl's names are
  # global, and tests import several programs into one process.
  flags.DEFINE_string("output", str(DEFAULT_OUTPUT), "Where to write the model")
  app.run(main)

"""Collects the text that data/make_tokenizer.py trains on.

Sentences spelled out here, the words of tabletop robots and of image questions,
make prompts short. Plain English, from the language reference inside every
CPython, fills the rest of the vocabulary with ordinary words that no robot
prompt uses: the 256 action tokens live there. That reference changes with
Python's version.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pydoc_data import topics

# How often each kind of sentence is repeated, against plain English once.
INSTRUCTION_WEIGHT = 6
QUESTION_WEIGHT = 2


def words(text: str) -> list[str]:
  """Splits a comma-separated list; lines may break anywhere in it."""
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
  """Lists every robot sentence: each instruction in each of the frames."""
  instructions = [*EXACT_INSTRUCTIONS * 10, *fill(INSTRUCTIONS, count=80)]
  return [
    frame.format(*[instruction] * frame.count("{}"))
    for instruction in instructions
    for frame in ROBOT_FRAMES
  ]


def plain_english() -> list[str]:
  """Lists prose of Python's language reference, without markup."""
  paragraphs = [
    " ".join(paragraph.split())
    for _, text in sorted(topics.topics.items())
    for paragraph in text.split("\n\n")
    if not paragraph.startswith((" ", ">>>"))  # indented text is mostly code
  ]
  prose = [re.sub(r"[^A-Za-z0-9 .,;:?!'()-]", "", p) for p in paragraphs]
  return [p for p in prose if len(re.findall(r"[a-z ]", p)) > 0.85 * len(p)]


def lexicon(sentences: Iterable[str]) -> list[str]:
  """Lists every word of the sentences, with and without a space before it.

  The trainer proposes as pieces only strings that go on in more than one way.
  In a template a word always meets the same next word, so it would never be
  proposed; here it meets the end of a sentence instead.
  """
  words = sorted({w for s in sentences for w in re.findall("[A-Za-z]+", s)})
  return words + [f" {word}" for word in words]


def corpus() -> list[str]:
  """Lists all training sentences, each as often as it counts."""
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
  """Hashes the corpus: the same corpus trains the same pieces."""
  return hashlib.sha256("\n".join(sentences).encode()).hexdigest()[:16]

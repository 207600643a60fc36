"""Draws a batch: `python launch/show_batch.py --config=configs/x.py`.

The first thing to do with a new dataset. Loads the batch of one training step
exactly as training does, changes its images as that step would, and writes a
PNG: each row's images as the model sees them, what it is asked, what it should
answer, and for a robot the action that the answer stands for, decoded to
physical units. It needs one device, whatever mesh the config asks for.
"""

import collections
import dataclasses
import io
import itertools
import logging
import math
import textwrap

import jax
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from launch import experiment_flag, program
from rt2_jax import sharding, storage, train_data
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.actions import Dimension
from rt2_jax.batch import Batch
from rt2_jax.errors import unknown_name
from rt2_jax.prompt import PLAN_END, PLAN_START, Prompt
from rt2_jax.train_config import TrainConfig

experiment_flag.define()
_OUTPUT = flags.DEFINE_string("output", "batch.png", "The picture.")
_STEP = flags.DEFINE_integer("step", 0, "Of training.", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", 8, "How many to draw.", lower_bound=1)

# Inches, but for the last five.
_MARGIN = 0.3
_HEADING = 0.7
_SIDE = 3.0  # of an image
_NAME = 0.3  # above it
_LINE = 0.165  # of text
_FONT_SIZE = 8.5
_CHARACTERS = 13  # of text per inch
_TABLE_CHARACTERS = 14
_MAX_LINES = 4  # of a question or an answer; the rest is cut
_COLUMNS = 4  # cards side by side

Block = tuple[str, dict[str, str]]  # lines of text, how they look


@dataclasses.dataclass(frozen=True)
class Card:
  """One row of a batch, ready to be drawn.

  Attributes:
    source: its name in the config.
    images: float32[F, R, R, 3] in [0, 1], oldest first.
    question: the decoded prefix.
    answer: the decoded suffix; a robot's action in RT-2's integers.
    action: (name, value with unit) of each dimension; empty for web data.
  """

  source: str
  images: np.ndarray
  question: str
  answer: str
  action: tuple[tuple[str, str], ...] = ()


@program.main_on_devices
def main():
  logging.getLogger("rt2_jax").setLevel(logging.INFO)
  path = storage.locate(_OUTPUT.value, "--output")
  form = picture_format(path)
  config = TrainConfig.from_dict(experiment_flag.read())
  action_tokenizers = config.action_tokenizers()
  batch, images = load(config, action_tokenizers, _STEP.value)
  names = np.asarray(config.source_names)[batch.source]
  shares = ", ".join(
    f"{name} {count}" for name, count in collections.Counter(names).items()
  )
  cards = make_cards(config, action_tokenizers, batch, images, _ROWS.value)
  title = f"step {_STEP.value}: {len(cards)} of {len(names)} rows; {shares}"
  storage.output_folder(path.parent, "--output")
  picture = io.BytesIO()
  draw(cards, title).savefig(picture, format=form, dpi=110)
  storage.write(path, picture.getvalue())
  print(f"{title}\npicture: {path}")


def picture_format(path: storage.Path) -> str:
  """Reads the format from a picture's name; default: png.

  Raises:
    UserError: matplotlib writes no such format.
  """
  form = path.suffix[1:].lower() or "png"
  known = FigureCanvasAgg.get_supported_filetypes()
  if form not in known:
    raise unknown_name(f"the ending of --output={path}", form, known)
  return form


def load(
  config: TrainConfig,
  action_tokenizers: dict[str, ActionTokenizer],
  step: int,
) -> tuple[Batch, np.ndarray]:
  """Loads the global batch of a step, and its images as the model sees them.

  Which mesh trains changes neither, so one device will do.
  """
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  batches = train_data.make_loader(config, action_tokenizers, mesh)
  batch = next(batches.batches(step, step + 1))
  trainer = config.make_trainer(action_tokenizers, mesh)
  return batch, np.asarray(trainer.training_images(batch, step))


def make_cards(
  config: TrainConfig,
  action_tokenizers: dict[str, ActionTokenizer],
  batch: Batch,
  images: np.ndarray,
  rows: int,
) -> list[Card]:
  """Makes cards of the first `rows` rows of a batch."""
  batch = Batch(*(column[:rows] for column in batch))
  shown = (images[:rows] + 1.0) / 2
  prompt = config.make_prompt()
  cards = []
  for b, source in enumerate(batch.source):
    name = config.source_names[source]
    question = config.tokenizer.decode(batch.prefix[b, batch.mask_input[b]])
    ids = batch.suffix[b, batch.mask_loss[b] > 0][:-1]  # without eos
    if name in action_tokenizers:
      text = robot_text(action_tokenizers[name], prompt, ids)
    else:
      text = (config.tokenizer.decode(ids),)
    cards.append(Card(name, shown[b], question.strip(), *text))
  return cards


def robot_text(
  action_tokenizer: ActionTokenizer, prompt: Prompt, ids: np.ndarray
) -> tuple[str, tuple[tuple[str, str], ...]]:
  """Formats the plan and the integers, and the action with units."""
  plan, ids = prompt.split_plan(ids)
  chunk = action_tokenizer.decode(ids)
  dimensions = zip(action_tokenizer.space.dimensions, chunk.T, strict=True)
  values = tuple((d.name, in_units(d, column)) for d, column in dimensions)
  integers = action_tokenizer.to_text(chunk)
  answer = f"{PLAN_START}{plan}{PLAN_END} {integers}" if plan else integers
  return answer, values


def in_units(d: Dimension, values: np.ndarray) -> str:
  """Formats one dimension of a chunk, float32[H], with its unit.

  Of more than two actions it shows the first and the last.
  """
  form = "{:g}" if d.values else "{:+.4f}"
  shown = [form.format(value) for value in values]
  text = ", ".join(shown) if len(shown) < 3 else f"{shown[0]} … {shown[-1]}"
  return f"{text} {d.unit}".rstrip()


def draw(cards: list[Card], title: str) -> Figure:
  """Draws one card per row of the batch, four side by side."""
  width = len(cards[0].images) * _SIDE
  blocks = [text_blocks(card, width) for card in cards]
  width = max(width, *map(table_width, blocks))
  height = _NAME + _SIDE + max(map(text_height, blocks)) + _MARGIN
  columns = min(len(cards), _COLUMNS)
  figure = plt.figure(
    figsize=(
      columns * (width + _MARGIN) + _MARGIN,
      math.ceil(len(cards) / columns) * height + _HEADING,
    )
  )
  write(figure, _MARGIN, _MARGIN, title, {"fontsize": 13})
  sources = list(dict.fromkeys(card.source for card in cards))
  for i, (card, texts) in enumerate(zip(cards, blocks, strict=True)):
    left = _MARGIN + i % columns * (width + _MARGIN)
    top = _HEADING + i // columns * height
    colour = f"C{sources.index(card.source)}"
    draw_card(figure, card, texts, left, top, colour)
  return figure


def draw_card(
  figure: Figure,
  card: Card,
  blocks: list[Block],
  left: float,
  top: float,
  colour: str,
):
  """Draws source and images, below them the text; left and top in inches."""
  name = {"color": colour, "weight": "bold", "fontsize": 11}
  write(figure, left, top, card.source, name)
  top += _NAME
  page = figure.get_size_inches()
  for f, image in enumerate(card.images):
    corner = (left + f * _SIDE) / page[0], 1 - (top + _SIDE) / page[1]
    axis = figure.add_axes((*corner, _SIDE / page[0], _SIDE / page[1]))
    axis.imshow(np.clip(image, 0, 1), interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=colour, linewidth=2)
  top += _SIDE + _LINE / 2
  for text, style in blocks:
    write(figure, left, top, text, {"fontsize": _FONT_SIZE, **style})
    top += text_height([(text, style)])


def text_blocks(card: Card, width: float) -> list[Block]:
  """Lists question, answer and, for a robot, the action as a table.

  Lines are at most `width` inches long, but for numbers: these are never cut.
  """
  characters = int(width * _CHARACTERS)
  blocks = [
    (wrap(card.question, characters), {"color": "0.35"}),
    (wrap(card.answer, characters), {"weight": "bold"}),
  ]
  if card.action:
    table = action_table(card.action, int(width * _TABLE_CHARACTERS))
    blocks.append((table, {"family": "monospace"}))
  return blocks


def table_width(blocks: list[Block]) -> float:
  """Inches that the longest line of a table takes; 0 without one."""
  lines = [
    line
    for text, style in blocks
    if style.get("family") == "monospace"
    for line in text.splitlines()
  ]
  return max(map(len, lines), default=0) / _TABLE_CHARACTERS


def text_height(blocks: list[Block]) -> float:
  """Inches that blocks take, with half a line after each."""
  return sum(_LINE * (text.count("\n") + 1.5) for text, _ in blocks)


def write(figure: Figure, left: float, top: float, text: str, style: dict):
  """Writes text whose upper left corner lies at (left, top), inches."""
  width, height = figure.get_size_inches()
  # A "$" in a question is a dollar, not mathematics.
  figure.text(
    left / width,
    1 - top / height,
    text,
    va="top",
    linespacing=1.2,
    parse_math=False,
    **style,
  )


def wrap(text: str, characters: int) -> str:
  """Wraps text into lines, cut after a few."""
  return textwrap.fill(text, characters, max_lines=_MAX_LINES, placeholder=" …")


def action_table(action: tuple[tuple[str, str], ...], characters: int) -> str:
  """Names and values, read downwards: in two columns, or in one if too wide."""
  half = math.ceil(len(action) / 2)
  left, right = _table_column(action[:half]), _table_column(action[half:])
  width = max(map(len, left)) + 2
  rows = itertools.zip_longest(left, right, fillvalue="")
  lines = [f"{a:<{width}}{b}".rstrip() for a, b in rows]
  if max(map(len, lines)) > characters:
    lines = _table_column(action)
  return "\n".join(lines)


def _table_column(action: tuple[tuple[str, str], ...]) -> list[str]:
  width = max((len(name) for name, _ in action), default=0)
  return [f"{name:<{width}} {value}" for name, value in action]


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)

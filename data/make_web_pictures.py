"""Writes questions about pictures as web records for the tabletop robot.

  python -m data.make_web_pictures --output_dir=DIR --train_examples=5000 \\
    --val_examples=500 --image_size=96

writes a folder for each skill, `DIR/{skill}/{skill}-{split}.tfrecord-…`, in the
format of rt2_jax/input_pipeline/web.py, so that a config can weigh the skills
one by one, and easy ones first. Pictures show all concepts in all art styles:
alone (card), several on a plain ground (board), and on the robot's table. The
images of `val` are none of `train`'s; the facts are the same.

Every example is a pure function of the settings, the skill, its split and its
number; pixels also depend on the graphics library. It needs no network.
"""

import concurrent.futures
import functools
import io
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from data import picture_scenes
from data.picture_questions import SKILLS, Words
from data.web_inputs import Found
from launch import program
from rt2_jax import storage
from rt2_jax.byte_ranges import open_storage
from rt2_jax.envs.tabletop import pictures
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.input_pipeline.web import WebExample

SPLITS = ("train", "val")
PICTURES = Path(__file__).with_name("pictures.zip")
JPEG_QUALITY = 95
CHUNK = 32  # examples that a process draws at a time

Settings = Mapping[str, Any]
Record = tuple[bytes, str, str, str]  # JPEG, question, answer, language


def example(settings: Settings, skill: str, split: str, number: int) -> Record:
  """Draws one example.

  Args:
    settings: those of `make`.
    skill: a key of `SKILLS`.
    split: one of `SPLITS`.
    number: of the example in the split.
  """
  key = (
    settings["seed"],
    list(SKILLS).index(skill),
    SPLITS.index(split),
    number,
  )
  rng = np.random.default_rng(key)
  known = pictures.load(PICTURES)
  names = tuple(settings["concepts"]) or tuple(known.concepts)
  kinds, styles = settings["scenes"], settings["styles"]
  kind = kinds[int(rng.integers(len(kinds)))]
  style = styles[int(rng.integers(len(styles)))]
  least, most = (
    min(count, picture_scenes.most_things(kind)) for count in settings["things"]
  )
  words = Words(known, names, rng, settings["location_bins"])
  question = SKILLS[skill](words, int(rng.integers(least, most + 1)))
  if len(question.shown) > picture_scenes.most_things(kind):
    kind = "board"
  kind = question.kind or kind
  drawn = picture_scenes.draw(
    kind, known, question.shown, style, settings["image_size"], rng
  )
  data = io.BytesIO()
  Image.fromarray(drawn.image).save(
    data, "JPEG", quality=JPEG_QUALITY, subsampling=0
  )
  return data.getvalue(), *question.ask(drawn), question.language


def make(
  output_dir: str | os.PathLike,
  skills: list[str],
  examples: Mapping[str, int],
  num_workers: int | None,
  num_shards: int,
  **settings,
) -> list[storage.Path]:
  """Writes all skills; returns the paths of their shards.

  Args:
    output_dir: gets a folder for each skill.
    skills: keys of `SKILLS`.
    examples: of each skill, by split.
    num_workers: processes; None for one on each CPU.
    num_shards: files of each skill and split.
    **settings: seed, image_size, concepts (empty: all), scenes, styles,
      things (least, most), location_bins; see the flags.

  Raises:
    UserError: an unknown name in the settings, or a folder holds records.
  """
  # Processes that draw import this file, and must not load TensorFlow.
  from data import make_web_records

  check(skills, settings)
  output_dir = storage.locate(output_dir, "--output_dir")
  paths = []
  with concurrent.futures.ProcessPoolExecutor(
    num_workers or os.cpu_count(),
    mp_context=multiprocessing.get_context("spawn"),
  ) as pool:
    for skill in skills:
      for split in SPLITS:
        print(f"{skill}, {split}:", flush=True)
        records = pool.map(
          functools.partial(example, settings, skill, split),
          range(examples[split]),
          chunksize=CHUNK,
        )
        paths += make_web_records.make(
          found(records, skill, split),
          output_dir / skill,
          skill,
          split,
          num_shards,
        )
  return paths


def found(records: Iterator[Record], skill: str, split: str) -> Iterator[Found]:
  """Converts the records to the examples that the writer takes."""
  for number, (image, question, answer, language) in enumerate(records):
    example = WebExample(image, question, (answer,), skill, language)
    yield Found(
      f"{skill}, {split} example {number}", lambda example=example: example
    )


def check(skills: list[str], settings: Settings) -> None:
  """Raises UserError for an unknown skill, concept, style or scene."""
  known = pictures.load(PICTURES)
  for skill in skills:
    if skill not in SKILLS:
      raise unknown_name("skill", skill, SKILLS)
  for name in settings["concepts"]:
    _ = known[name]
  for style in settings["styles"]:
    if style not in known.styles:
      raise unknown_name("art style", style, known.styles)
  for kind in settings["scenes"]:
    if kind not in picture_scenes.SCENES:
      raise unknown_name("scene", kind, picture_scenes.SCENES)
  least, most = settings["things"]
  if not 1 <= least <= most <= 5:
    raise UserError(
      f"got things {least}..{most}, expected 1 <= least <= most <= 5: more "
      "find no room in a picture"
    )


@program.main
def main():
  args = flags.FLAGS
  paths = make(
    args.output_dir,
    args.skills,
    {"train": args.train_examples, "val": args.val_examples},
    args.num_workers,
    args.num_shards,
    seed=args.seed,
    image_size=args.image_size,
    concepts=args.concepts,
    scenes=args.scenes,
    styles=args.styles,
    things=(args.min_things, args.max_things),
    location_bins=args.location_bins,
  )
  size = sum(open_storage(str(paths[0])).sizes(list(map(str, paths))))
  print(f"{args.output_dir}: {len(paths)} shards, {size / 1e6:.1f} MB")


if __name__ == "__main__":
  flags.DEFINE_string("output_dir", None, "Where to write", required=True)
  flags.DEFINE_list("skills", [*SKILLS], "Kinds of questions")
  flags.DEFINE_integer("train_examples", 5000, "Of each skill", lower_bound=1)
  flags.DEFINE_integer("val_examples", 500, "Of each skill", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Gives other examples", lower_bound=0)
  flags.DEFINE_integer("image_size", 96, "Pixels a side", 16, 1024)
  flags.DEFINE_list("concepts", [], "What pictures show; default: all")
  flags.DEFINE_list("scenes", [*picture_scenes.SCENES], "Kinds of pictures")
  flags.DEFINE_list("styles", ["noto", "twemoji"], "Of the pictures")
  flags.DEFINE_integer("min_things", 1, "In a picture", 1, 5)
  flags.DEFINE_integer("max_things", 4, "In a picture", 1, 5)
  flags.DEFINE_integer(
    "location_bins", 16, "Of a coordinate; small models need few", 2, 1024
  )
  flags.DEFINE_integer("num_shards", 1, "Files of a skill and split", 1, 999)
  flags.DEFINE_integer("num_workers", None, "Processes; default: all CPUs", 1)
  app.run(main)

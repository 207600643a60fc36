"""Checks of records, texts, times and pictures.

Each check takes a split and yields findings. An error is what training refuses
or learns wrongly from; a warning is what a person should have looked at.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np

from data.findings import PLACES, Finding, stretches
from data.recorded_episodes import RecordedSplit
from rt2_jax.errors import UserError
from rt2_jax.tokenizer import Tokenizer

_GAP = 1.5  # times the usual time between steps
_HANGS_S = 2.0  # a camera that shows one picture for so long
_MAX_CHARACTERS = 200  # of an instruction
_TOKENIZER = "data/small_tokenizer.model"


def check_counts(split: RecordedSplit) -> Iterator[Finding]:
  """Compares records with dataset_info.json, and names damaged ones."""
  if split.stated is None:
    yield Finding(
      "no counts",
      "dataset_info.json states no shardLengths: a shard that lacks records "
      "cannot be noticed.",
    )
  elif split.stated != split.found:
    yield Finding(
      "records are missing",
      f"dataset_info.json states {split.stated:,} episodes, {split.found:,} "
      "are there; copy the shards again.",
      is_error=True,
    )
  if split.damaged:
    yield Finding(
      "damaged episodes",
      f"{len(split.damaged):,} of {split.found:,} cannot be read; repair them, "
      "or train with config.loader.max_skipped.",
      is_error=True,
      places=tuple(loss.problem for loss in split.damaged[:PLACES]),
    )
  if not split.episodes:
    yield Finding("no episode", "Nothing can be read.", is_error=True)


def check_texts(split: RecordedSplit) -> Iterator[Finding]:
  """Finds instructions that are empty, too long, or written in two ways."""
  count = collections.Counter(t for e in split.episodes for t in e.texts)
  empty = sum(n for text, n in count.items() if not text.strip())
  if empty:
    yield Finding(
      "empty instructions",
      f"{empty:,} of {sum(count.values()):,} steps have none: a policy learns "
      "to act without being asked. Write them, or leave these episodes out.",
      is_error=True,
    )
  long = [text for text in count if len(text) > _MAX_CHARACTERS]
  if long:
    yield Finding(
      "long instructions",
      f"{len(long):,} have more than {_MAX_CHARACTERS} characters: see that "
      "config.prompt.prefix_length holds them.",
      places=tuple(f"{text[:80]} …" for text in long[:PLACES]),
    )
  spellings: dict[str, list[str]] = {}
  for text in count:
    plain = " ".join(text.lower().split()).rstrip(".!?")
    spellings.setdefault(plain, []).append(text)
  several = [texts for plain, texts in spellings.items() if len(texts) > 1]
  if several:
    yield Finding(
      "one instruction, several spellings",
      f"{len(several):,} differ in capitals, spaces or full stops alone; write "
      "them alike, or keep them on purpose.",
      places=tuple(" | ".join(map(repr, t)) for t in several[:PLACES]),
    )


def check_words(split: RecordedSplit) -> Iterator[Finding]:
  """Finds instructions that tokenizing refuses, such as one with `<eos>`.

  The small tokenizer has Gemma's control words.
  """
  tokenizer, places = Tokenizer.from_file(_TOKENIZER), []
  for text in dict.fromkeys(t for e in split.episodes for t in e.texts):
    try:
      tokenizer.encode(text)
    except UserError as problem:
      places.append(str(problem))
  if places:
    yield Finding(
      "instructions that cannot be written",
      f"{len(places):,} hold what training refuses; change these texts.",
      is_error=True,
      places=tuple(places[:PLACES]),
    )


def check_times(split: RecordedSplit) -> Iterator[Finding]:
  """Finds stamps that stand still or leave gaps, and a rate not as stated."""
  stamped = [e for e in split.episodes if e.timestamp is not None]
  steps = [np.diff(e.timestamp) for e in stamped if len(e.timestamp) > 1]
  if not steps:
    return
  usual = float(np.median(np.concatenate(steps)))
  if usual <= 0:
    yield Finding(
      "time stamps stand still",
      "Most are that of the step before, so that neither the rate nor lost "
      "steps can be seen. float32 tells Unix seconds apart by 128: record "
      "float64, or seconds since the episode's start.",
    )
    return
  rate = split.robot.rate_hz
  if rate and abs(1 / usual / rate - 1) > 0.05:
    yield Finding(
      "another rate",
      f"Steps are {usual:.4f} s apart, {1 / usual:.2f} per second, and rate_hz "
      f"says {rate:g}: correct it in robot.json.",
      is_error=True,
    )
  places = [
    f"{episode.name}, step {t}: {gap:.3f} s"
    for episode, gaps in zip(
      [e for e in stamped if len(e.timestamp) > 1], steps, strict=True
    )
    for t, gap in enumerate(gaps, 1)
    if gap <= 0 or gap > _GAP * usual
  ]
  if places:
    yield Finding(
      "gaps between time stamps",
      f"{len(places):,} steps do not follow the one before after {usual:.3f} "
      "s: steps were lost, or stand in another order.",
      places=tuple(places[:PLACES]),
    )


def check_duplicates(split: RecordedSplit) -> Iterator[Finding]:
  """Finds episodes that are there twice, and cameras that hang."""
  known: dict[bytes, str] = {}
  twice = []
  for episode in split.episodes:
    key = episode.action.tobytes() + episode.pictures[:1].tobytes()
    first = known.setdefault(key, episode.name)
    if first != episode.name:
      twice.append(f"{episode.name} is {first}")
  if twice:
    yield Finding(
      "episodes are there twice",
      f"{len(twice):,} of {len(split.episodes):,} have the actions and the "
      "first pictures of another; remove them.",
      is_error=True,
      places=tuple(twice[:PLACES]),
    )
  least = max(2, round(_HANGS_S * (split.robot.rate_hz or 1.0)))
  for c, camera in enumerate(split.robot.cameras):
    frozen = [
      (length + 1, f"{episode.name}, step {first}: {length + 1} steps")
      for episode in split.episodes
      for first, length in stretches(
        episode.pictures[1:, c] == episode.pictures[:-1, c]
      )
      if length >= least
    ]
    if frozen:
      frozen.sort(reverse=True)
      yield Finding(
        f"camera {camera} hangs",
        f"{sum(n for n, _ in frozen):,} steps show the same picture for more "
        f"than {_HANGS_S:g} s.",
        places=tuple(place for _, place in frozen[:PLACES]),
      )

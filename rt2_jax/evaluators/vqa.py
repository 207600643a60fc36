"""Visual question answering on held-out data: it shows forgetting.

Each task of a web source (captions, questions, detection, …) is reported
alone, in two readings: the answers as the model writes them, and
teacher-forced, token by token, which is the fairer one for captions.

Shapes: b examples of one chunk, H x W pixels.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from rt2_jax.errors import UserError
from rt2_jax.policy import Policy

METRICS = ("accuracy", "forced_accuracy")  # over all tasks, and of each one

_LOC = re.compile(r"<loc(\d{4})>")
# Punctuation that does not count: a decimal point and a number's sign do.
_OTHERS = re.escape("".join(sorted({*string.punctuation} - {*".-"})))
_IGNORED = re.compile(rf"[{_OTHERS}]|[.-](?!\.?\d)|(?<=[^\W\d])[.-]")
_VQA_ANSWERS = 10  # people that VQA v2 asked about each image
_OVERLAP = 0.5  # of a box that counts as found, as in PASCAL VOC


class Question(Protocol):
  """One held-out example, see `input_pipeline.web.WebExample`."""

  question: str
  answers: tuple[str, ...]
  task: str


def evaluate(
  policy: Policy,
  chunks: Iterable[tuple[np.ndarray, np.ndarray, Sequence[Question]]],
) -> dict[str, float]:
  """Asks a policy questions whose answers are known.

  Args:
    policy: what to evaluate.
    chunks: images uint8[b, F, H, W, 3], their sizes int32[b, F, 2] and b
      examples, from `in_order.read_questions`.

  Returns:
    accuracy/{task}, forced_accuracy/{task} and examples/{task}, and the first
    two over all tasks.

  Raises:
    UserError: there are none.
  """
  scores: dict[str, list[float]] = defaultdict(list)
  forced: dict[str, list[float]] = defaultdict(list)
  for images, size, examples in chunks:
    answers = policy.answer(images, [e.question for e in examples], size)
    shares = _forced_share(policy, images, size, examples)
    for example, answer, share in zip(examples, answers, shares, strict=True):
      task = example.task or "web"
      scores[task].append(score(answer, example.answers))
      forced[task].append(share)
  if not scores:
    raise UserError(
      "got no questions, expected at least one; choose another eval_split or a "
      "larger limit"
    )
  metrics = {"accuracy": _mean_of_all(scores)}
  metrics["forced_accuracy"] = _mean_of_all(forced)
  for task in sorted(scores):
    metrics[f"accuracy/{task}"] = float(np.mean(scores[task]))
    metrics[f"forced_accuracy/{task}"] = float(np.mean(forced[task]))
    metrics[f"examples/{task}"] = float(len(scores[task]))
  return metrics


def score(answer: str, right: Sequence[str]) -> float:
  """Scores an answer, 0 to 1.

  With ten right answers, VQA v2's measure: three people who agree are enough.
  A text with boxes is right when every box covers its own. Otherwise one match
  suffices; case, spaces and punctuation do not count, but for a number's point
  and sign.
  """
  boxes = [_boxes(text) for text in right]
  if any(len(b) for b in boxes):
    found = _boxes(answer)
    return float(any(_covers(found, b) for b in boxes))
  matches = [_plain(text) for text in right].count(_plain(answer))
  needed = 3 if len(right) == _VQA_ANSWERS else 1
  return min(matches / needed, 1.0)


def _forced_share(policy, images, size, examples) -> np.ndarray:
  """Computes the fraction of each first answer's tokens predicted, float[b]."""
  prompt = policy.prompt
  encode = prompt.tokenizer.encode
  suffixes = [prompt.suffix(encode(e.answers[0])) for e in examples]
  suffix, counted = map(np.stack, zip(*suffixes, strict=True))
  prompts = prompt.prefixes([e.question for e in examples])
  predicted = policy.forced_ids(images, size, prompts, suffix)
  return ((predicted == suffix) * counted).sum(-1) / counted.sum(-1)


def _mean_of_all(values: dict[str, list[float]]) -> float:
  return float(np.mean([*itertools.chain(*values.values())]))


def _plain(text: str) -> str:
  words = _IGNORED.sub("", text.lower()).split()
  return " ".join(words) or text.strip()  # punctuation may be all of an answer


def _boxes(text: str) -> np.ndarray:
  """Parses boxes, float[n, 4]: y0, x0, y1, x1 in 1024ths, as PaliGemma."""
  places = [float(place) for place in _LOC.findall(text)]
  return np.reshape(places[: len(places) // 4 * 4], (-1, 4))


def _covers(found: np.ndarray, right: np.ndarray) -> bool:
  """Tells whether boxes match one to one, in order."""
  if len(found) != len(right):
    return False
  top, bottom = np.maximum(found, right)[:, :2], np.minimum(found, right)[:, 2:]
  common = np.prod(np.maximum(bottom - top, 0.0), -1)
  area = _area(found) + _area(right) - common
  return bool(np.all(common >= _OVERLAP * np.maximum(area, 1e-9)))


def _area(boxes: np.ndarray) -> np.ndarray:
  return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), -1)

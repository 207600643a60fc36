"""One RLDS episode: its features, checked, and its canonical form.

Shapes: T steps of an episode, D action dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import records

_TOLERANCE = 1e-3  # beyond a feature's range: float32 and rounding

# Less than this in a step is standing still, by the unit of a motion. Speeds
# are given at 10 Hz the same 0.1 mm or mrad in a step; a controller's largest
# step is some centimetres.
STILL = {"m": 1e-4, "rad": 1e-4, "m/s": 1e-3, "rad/s": 1e-3, "step": 1e-3}
# Metres and radians are motions where the name says so: "dx", "base_dyaw".
# Joint angles are radians too, and are never near zero.
_DISPLACEMENT = re.compile(r"(.*_)?(d(r?[xyz]|roll|pitch|yaw)|delta(_.*)?)")


class Episode:
  """One RLDS episode; features are found by their name below `steps/`."""

  def __init__(self, record: records.Record):
    self.record = record
    self.length = count_steps(record)

  @property
  def where(self) -> str:
    """The episode's place, for error messages."""
    return f"{self.record.where}, episode {self.record.number}"

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads a numeric feature of any width, [T, …] flattened to [T, n].

    Raises:
      UserError: no numbers, some that are not finite, or that do not divide
        into T steps.
    """
    values = self.record.numbers(f"steps/{name}")
    if self.length and not values.size:
      raise UserError(
        f"{self.where}: got no number in {name!r}, expected some in each step; "
        "read another feature if it holds texts or images, or write it without "
        "an encoding such as TFDS's 'zlib'"
      )
    if not self.length or values.size % self.length:
      raise UserError(
        f"{self.where}: got {values.size} numbers in {name!r}, expected "
        f"a multiple of the episode's {self.length} steps"
      )
    values = values.reshape(self.length, -1)
    check_finite(values, repr(name), f"{self.where}: ")
    return values

  def numbers(
    self, name: str, width: int, within: tuple[float, float] | None = None
  ) -> np.ndarray:
    """Reads a numeric feature of a known width, [T, width].

    Args:
      name: of the feature.
      width: how many numbers each step has.
      within: least and largest value that the dataset's convention knows.

    Raises:
      UserError: another width, or a value outside the range: the records are
        of another dataset, or damaged.
    """
    values = self[name]
    if values.shape[1] != width:
      raise UserError(
        f"{self.where}: got {values.shape[1]} numbers in each step of "
        f"{name!r}, expected {width}; check the dataset's name and version"
      )
    return values if within is None else self.in_range(name, values, *within)

  def in_range(
    self, name: str, values: np.ndarray, low: float, high: float
  ) -> np.ndarray:
    """Returns the columns [T, n] of a feature, compared with their range.

    Raises:
      UserError: a value that the dataset's convention does not know.
    """
    bad = np.argwhere(
      (values < low - _TOLERANCE) | (values > high + _TOLERANCE)
    )
    if bad.size:
      step, column = bad[0]
      raise UserError(
        f"{self.where}: got {values[step, column]:g} in step {step} of "
        f"{name!r}, expected {low:g} to {high:g}; check the dataset's name and "
        "version"
      )
    return values

  def texts(self, name: str) -> list[str]:
    """Reads a text feature, T strings; raises UserError where it has others."""
    texts = self.record.texts(f"steps/{name}")
    self._check_count(len(texts), "texts", name)
    return texts

  def image_spans(self, name: str) -> list[records.Span]:
    """Finds (offset in the shard, length) of each step's encoded image."""
    spans = self.record.byte_spans(f"steps/{name}")
    self._check_count(len(spans), "images", name)
    return spans

  def _check_count(self, count: int, what: str, name: str):
    if not count and self.record.numbers(f"steps/{name}").size:
      raise UserError(
        f"{self.where}: got numbers in {name!r}, expected encoded {what}; read "
        "another feature, or write this one as TFDS's Image and Text do"
      )
    if count != self.length:
      raise UserError(
        f"{self.where}: got {count} {what} in {name!r}, expected "
        f"{self.length}, one for each step in 'is_first'"
      )


def check_finite(values: np.ndarray, what: str, place: str = ""):
  """Checks the numbers of an episode, float[T, n].

  Args:
    values: the numbers.
    what: they are, for the message.
    place: stands before it.

  Raises:
    UserError: one is not finite.
  """
  bad = np.argwhere(~np.isfinite(values))
  if bad.size:
    step, column = bad[0]
    raise UserError(
      f"{place}got {values[step, column]} in step {step}, number {column} of "
      f"{what}, expected a finite number; repair or drop this episode"
    )


def count_steps(record: records.Record) -> int:
  """Counts the steps of an episode's record."""
  return len(record.numbers("steps/is_first"))


class WrongFunctionError(UserError):
  """A dataset's function contradicts itself: no fault of a single episode."""


class Canonical(NamedTuple):
  """An episode's small features in this project's conventions.

  Attributes:
    instruction: one text for each step that is kept.
    action: float32[n, D] in physical units, in the order of an `ActionSpace`.
    plan: texts that precede the actions, or none; see `Prompt.plan_ids`.
    steps: int[n], the steps of the episode that are kept, ascending; None
      keeps all T.
  """

  instruction: Sequence[str]
  action: np.ndarray
  plan: Sequence[str] = ()
  steps: Sequence[int] | None = None

  def check(self, length: int, space: ActionSpace, where: str) -> np.ndarray:
    """Compares the parts with each other.

    Args:
      length: T.
      space: what the D numbers of an action mean.
      where: the episode, for error messages.

    Returns:
      int[n], the steps of the episode that are kept.

    Raises:
      WrongFunctionError: the function that made it contradicts itself.
      UserError: an action that is not finite.
    """
    steps = np.arange(length)
    if self.steps is not None:
      steps = _checked_steps(np.asarray(self.steps), length, where)
    count = len(steps)
    _check_texts("instructions", self.instruction, where)
    _check_texts("plans", self.plan, where)
    shape = np.shape(self.action)
    counts = [len(self.instruction), len(self.plan) if self.plan else count]
    if shape != (count, len(space)) or set(counts) != {count}:
      raise WrongFunctionError(
        f"{where}: got actions {list(shape)}, {counts[0]} instructions and "
        f"{counts[1]} plans from the dataset's function, expected actions "
        f"[{count}, {len(space)}] ({', '.join(space.names)}) and as many "
        "texts; a function that leaves out steps names those that it keeps in "
        "Canonical.steps"
      )
    bad = np.argwhere(~np.isfinite(self.action))
    if bad.size:
      row, dimension = bad[0]
      raise UserError(
        f"{where}: got {self.action[row, dimension]} for action dimension "
        f"{space.names[dimension]!r} in step {steps[row]}, expected a finite "
        "number; repair or drop this episode"
      )
    return steps


def _checked_steps(steps: np.ndarray, length: int, where: str) -> np.ndarray:
  """Returns the steps that a dataset's function keeps, int[n].

  Raises:
    WrongFunctionError: anything but ascending numbers of steps.
  """
  if not steps.size:
    return np.arange(0)
  whole = np.issubdtype(steps.dtype, np.integer) and steps.ndim == 1
  if not whole or steps[0] < 0 or steps[-1] >= length or _descends(steps):
    raise WrongFunctionError(
      f"{where}: got steps {steps.tolist()} from the dataset's function, "
      f"expected ascending whole numbers of 0 to {length - 1}; correct the "
      "function"
    )
  return steps


def _descends(steps: np.ndarray) -> bool:
  return bool((steps[1:] <= steps[:-1]).any())


def _check_texts(what: str, texts: Sequence[str], where: str):
  """Refuses one text in place of one for each step, and what is no text.

  Raises:
    WrongFunctionError: the dataset's function gave such.
  """
  if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
    raise WrongFunctionError(
      f"{where}: got {what} {texts!r:.80} from the dataset's function, "
      "expected a list of str, one for each step that is kept; correct the "
      "function"
    )


def is_displacement(d: Dimension) -> bool:
  """Tells whether the robot stands still where this dimension is zero."""
  if d.unit in ("m", "rad"):
    return bool(_DISPLACEMENT.fullmatch(d.name))
  return d.unit in STILL

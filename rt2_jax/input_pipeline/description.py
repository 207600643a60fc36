"""robot.json: what a dataset's records mean, said without code.

    {
      "rate_hz": 10,
      "cameras": {"primary": "observation/image"},
      "instruction": "language_instruction",
      "action": [
        {"name": "dx", "unit": "m", "feature": "action", "column": 0,
         "scale": 0.05},
        {"name": "gripper", "feature": "action", "column": 6,
         "gripper": {"open": -1, "closed": 1}}
      ],
      "state": [{"name": "x", "unit": "m", "feature": "observation/state"}]
    }

`{"dataset": "libero"}` says that the records are those of a known dataset.

Shapes: T steps of an episode, n numbers of each.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from rt2_jax import storage
from rt2_jax.action_spaces import RT2
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.fields import check, construct
from rt2_jax.input_pipeline import rlds
from rt2_jax.input_pipeline.datasets import RobotDataset
from rt2_jax.input_pipeline.episodes import (
  Canonical,
  Episode,
  WrongFunctionError,
  is_displacement,
)
from rt2_jax.input_pipeline.grippers import absolute_gripper, binary_gripper
from rt2_jax.ranges import at_least, between, more_than

FILE = "robot.json"
GRIPPERS = ("absolute", "binary", "relative")
_TERMINATE = RT2.dimensions[0]
_ANY = between(-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Gripper:
  """The meaning of a gripper's numbers.

  Attributes:
    open: the number of an open gripper, or of the command to open it.
    closed: the number of a closed one.
    kind: "absolute" where each number says how far it is open; "binary" where
      it is measured, and the next settled state is meant; "relative" for
      commands, between which the gripper holds.
  """

  open: Annotated[float, _ANY]
  closed: Annotated[float, _ANY]
  kind: str = "absolute"

  def read(self, values: np.ndarray) -> np.ndarray:
    """Converts float[T, 1] to absolute numbers with 1 = open."""
    opening = (values - self.closed) / (self.open - self.closed)
    if self.kind == "relative":
      return absolute_gripper(1.0 - 2.0 * opening)
    opening = np.clip(opening, 0.0, 1.0)
    return binary_gripper(opening) if self.kind == "binary" else opening


@dataclasses.dataclass(frozen=True)
class Number:
  """One number of an action or a state.

  Attributes:
    name: what it is, such as "dx".
    feature: where it is recorded, by its name below `steps/`.
    unit: of `scale` times the recorded number plus `offset`.
    column: which number of the feature it is.
    scale: physical units in a recorded unit.
    offset: in physical units.
    low: least value told apart, unless the source has `bounds`.
    high: the largest.
    gripper: what a gripper's numbers mean; instead of unit, scale and bounds.
  """

  name: str
  feature: str
  unit: str = ""
  column: Annotated[int, at_least(0)] = 0
  scale: Annotated[float, _ANY] = 1.0
  offset: Annotated[float, _ANY] = 0.0
  low: Annotated[float, _ANY] = -1.0
  high: Annotated[float, _ANY] = 1.0
  gripper: Gripper | None = None

  @property
  def dimension(self) -> Dimension:
    """The number as a dimension of a space.

    After an episode's end a motion is 0, and anything else stays as it was.
    """
    if self.gripper:
      return Dimension(self.name, "open", 0.0, 1.0, at_end=None)
    found = Dimension(self.name, self.unit, self.low, self.high)
    if is_displacement(found):
      return found
    return dataclasses.replace(found, at_end=None)

  def read(self, episode: Episode) -> np.ndarray:
    """Reads float[T, 1] in physical units.

    Raises:
      WrongFunctionError: the records have no such feature or column.
      UserError: a gripper's number that is neither open nor closed nor between.
    """
    values = _column(episode, self.feature, self.column, self.name)
    if not self.gripper:
      return self.scale * values + self.offset
    ends = sorted((self.gripper.open, self.gripper.closed))
    return self.gripper.read(episode.in_range(self.feature, values, *ends))


@dataclasses.dataclass(frozen=True)
class Terminate:
  """The number that is 1 on the step that ends an episode, and else 0."""

  feature: str = "is_last"
  column: Annotated[int, at_least(0)] = 0

  def read(self, episode: Episode) -> np.ndarray:
    """Reads float[T, 1]; raises as `Number.read`."""
    values = _column(episode, self.feature, self.column, "terminate")
    return np.round(episode.in_range(self.feature, values, 0, 1))


@dataclasses.dataclass(frozen=True)
class Description:
  """The fields of a robot.json.

  Attributes:
    rate_hz: steps per second.
    cameras: the image feature of each camera, by the camera's name.
    instruction: the text feature, of a step or of the whole episode.
    action: the numbers of an action, after `terminate`.
    terminate: what ends an episode; None where actions cannot.
    state: the numbers of the robot's state, if there are any.
    name: of the robot's action space.
    frame: in which motions are given.
  """

  rate_hz: Annotated[float, more_than(0)]
  cameras: Mapping[str, str]
  instruction: str
  action: Sequence[Number]
  terminate: Terminate | None = Terminate()
  state: Sequence[Number] = ()
  name: str = "robot"
  frame: str = "robot base"

  def to_dataset(self) -> RobotDataset:
    """Converts to what a row of `datasets.DATASETS` is."""
    action = tuple(number.dimension for number in self.action)
    if self.terminate:
      action = (_TERMINATE, *action)
    state = None
    if self.state:
      dimensions = tuple(number.dimension for number in self.state)
      state = rlds.RobotState(
        ActionSpace(f"{self.name}_state", self.frame, dimensions),
        _Numbers(tuple(self.state)),
      )
    return RobotDataset(
      ActionSpace(self.name, self.frame, action),
      dict(self.cameras),
      _Standardize(self.instruction, self.terminate, tuple(self.action)),
      state,
      rate_hz=float(self.rate_hz),
    )


@dataclasses.dataclass(frozen=True)
class _Numbers:
  """Reads several numbers side by side, float32[T, n]."""

  numbers: tuple[Number | Terminate, ...]

  def __call__(self, episode: Episode) -> np.ndarray:
    columns = [number.read(episode) for number in self.numbers]
    return np.concatenate(columns, -1, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class _Standardize:
  """Reads episodes by a description; its hash is that of its content."""

  instruction: str
  terminate: Terminate | None
  action: tuple[Number, ...]

  def __call__(self, episode: Episode) -> Canonical:
    ends = (self.terminate,) if self.terminate else ()
    action = _Numbers((*ends, *self.action))(episode)
    return Canonical(self._instructions(episode), action)

  def _instructions(self, episode: Episode) -> list[str]:
    name, names = self.instruction, episode.record.names
    if f"steps/{name}" in names or name not in names:
      _check_feature(episode, name, "instruction")
      return episode.texts(name)
    texts = episode.record.texts(name)
    if len(texts) != 1:
      raise WrongFunctionError(
        f"{episode.where}: got {len(texts)} texts in {name!r}, expected one as "
        "the instruction of the whole episode; name another feature"
      )
    return texts * episode.length


def _column(
  episode: Episode, feature: str, column: int, name: str
) -> np.ndarray:
  """Reads one column of a feature, float[T, 1].

  Raises:
    WrongFunctionError: the records have no such feature or column.
  """
  _check_feature(episode, feature, name)
  values = episode[feature]
  if column >= values.shape[1]:
    raise WrongFunctionError(
      f"{episode.where}: got column {column} for {name!r} in {FILE}, expected "
      f"0 to {values.shape[1] - 1}: {feature!r} has {values.shape[1]} numbers "
      "in each step; correct the description"
    )
  return values[:, column : column + 1]


def _check_feature(episode: Episode, feature: str, name: str):
  """Raises WrongFunctionError unless the steps have such a feature."""
  names = [n.removeprefix("steps/") for n in episode.record.names]
  if f"steps/{feature}" not in episode.record.names:
    what = f"the feature of {name!r} in {FILE}"
    problem = unknown_name(what, feature, names)
    raise WrongFunctionError(f"{episode.where}: {problem}")


def read(path: str) -> Description | str:
  """Reads a robot.json, local or e.g. `gs://…`.

  Returns:
    The description; or the name of the dataset whose records they are.

  Raises:
    UserError: no such file, or fields that do not belong there.
  """
  place = storage.locate(path, "a source's dataset")
  try:
    content = place.read_bytes()
  except UserError:
    raise
  except (OSError, ValueError) as error:
    raise UserError(
      f"got no description {path} ({error}), expected a {FILE}; write one, or "
      "name the dataset whose records these are"
    ) from error
  try:
    fields = json.loads(content)
  except ValueError as error:
    raise UserError(
      f"{path}: got a file that is no JSON ({error}); correct it"
    ) from error
  return parse(fields, path)


def parse(fields: Any, path: str) -> Description | str:
  """Checks the fields of a robot.json.

  Args:
    fields: JSON values.
    path: where they stand, for error messages.

  Raises:
    UserError: an unknown or missing field, or one of another type.
  """
  if isinstance(fields, dict) and set(fields) == {"dataset"}:
    if not isinstance(fields["dataset"], str):
      raise UserError(f"{path}: got {fields}, expected a dataset's name")
    return fields["dataset"]
  check(Description, f"{path}: ", fields)
  top = dict(fields)
  cameras = top["cameras"]
  if not cameras or not all(isinstance(c, str) for c in cameras.values()):
    raise UserError(
      f"{path}: got cameras {cameras}, expected the feature of each by its "
      'name, such as {"primary": "observation/image"}'
    )
  for group in ("action", "state"):
    numbers = [
      _number(number, f"{path}: {group}[{i}]")
      for i, number in enumerate(top.get(group, ()))
    ]
    names = [number.name for number in numbers]
    ends = group == "action" and top.get("terminate", True) is not None
    own = [_TERMINATE.name] * ends
    if len({*own, *names}) < len(own + names) or (
      group == "action" and not names
    ):
      raise UserError(
        f"{path}: got {group} dimensions {names}{' beside terminate' * ends}, "
        "expected at least one of an action, and no name twice"
      )
    top[group] = tuple(numbers)
  if top.get("terminate"):
    place = f"{path}: terminate."
    top["terminate"] = construct(Terminate, place, top["terminate"])
  return Description(**top)


def _number(fields: Any, where: str) -> Number:
  check(Number, f"{where}.", fields)
  gripper = fields.get("gripper")
  if gripper is None:
    if not fields.get("unit"):
      raise UserError(
        f"{where}: got no unit of {fields['name']!r}, expected one such as "
        "'m' or 'rad', or a gripper; add it"
      )
    if fields.get("scale", 1.0) == 0:
      raise UserError(f"{where}: got scale 0, expected another number")
    return Number(**fields)
  physical = {"unit", "scale", "offset", "low", "high"} & set(fields)
  found = construct(Gripper, f"{where}.gripper.", gripper)
  if physical or found.open == found.closed:
    raise UserError(
      f"{where}: got a gripper with {found} and {sorted(physical)}, expected "
      "different numbers for open and closed, which say all"
    )
  if found.kind not in GRIPPERS:
    raise unknown_name(f"{where}.gripper.kind", found.kind, GRIPPERS)
  return Number(**dict(fields) | {"gripper": found})

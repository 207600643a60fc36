"""What an importer changes about recorded numbers, as its flags say.

  --rotation='action[3:7]=quaternion_xyzw'   written as roll, pitch and yaw
  --rotation='state[10:14]=axis_angle:left'  the same, called left_roll …
  --motion='action[0:7]-state[0:7]'          a target becomes the way to it
  --motion='action[0:6]+state[0:6]'          a motion becomes where it leads

Positions count from 0 and are those of the recorded numbers. Everything else
about a number (unit, scale, gripper) is said in robot.json and needs no change
of the records. Ways and turns are given in the frame of the state.

Shapes: T steps of an episode, A numbers of an action, S of a state.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from data import rotations
from data.recordings import Column, Layout
from rt2_jax.errors import UserError

_ROTATION = re.compile(
  r"(?P<feature>action|state)\[(?P<start>\d+):(?P<stop>\d+)\]"
  r"=(?P<form>\w+)(:(?P<prefix>[A-Za-z]\w*))?"
)
_MOTION = re.compile(
  r"action\[(?P<start>\d+):(?P<stop>\d+)\](?P<sign>[-+])"
  r"state\[(?P<from_start>\d+):(?P<from_stop>\d+)\]"
)
_AXES = ("roll", "pitch", "yaw")
_POSE = re.compile(r"(?P<arm>.*_)?(?P<axis>r?[xyz]|roll|pitch|yaw)")


class Turn(NamedTuple):
  """Numbers `start` to `stop` of a feature are a rotation in that form."""

  feature: str
  start: int
  stop: int
  form: str
  prefix: str = ""


class Move(NamedTuple):
  """Numbers of the action against those of the state.

  Attributes:
    sign: -1 where a target becomes the way to it, 1 the other way round.
    action: first position of the action, and the one after the last.
    state: the same of the state.
  """

  sign: int
  action: tuple[int, int]
  state: tuple[int, int]


class _Part(NamedTuple):
  """A stretch of recorded numbers: a single one, or a rotation."""

  start: int
  stop: int
  turn: Turn | None = None


@dataclasses.dataclass(frozen=True)
class Conversions:
  """All changes of one import.

  Attributes:
    turns: numbers that are rotations.
    moves: between targets and motions.
  """

  turns: tuple[Turn, ...] = ()
  moves: tuple[Move, ...] = ()

  @classmethod
  def parse(
    cls, turns: Sequence[str] = (), moves: Sequence[str] = ()
  ) -> Conversions:
    """Reads the flags; raises UserError for what is none of their form."""
    return cls(tuple(map(_turn, turns)), tuple(map(_move, moves)))

  def convert_layout(self, layout: Layout) -> Layout:
    """Names the columns that `convert` returns.

    Raises:
      UserError: positions that overlap, do not exist or do not match.
    """
    action = self._parts("action", len(layout.action))
    state = self._parts("state", len(layout.state))
    columns = [_columns(part, layout.action) for part in action]
    for move in self.moves:
      for i, _ in _pairs(move, action, state):
        columns[i] = [
          dataclasses.replace(c, name=_motion_name(c.name, move.sign))
          for c in columns[i]
        ]
    turned = [_columns(part, layout.state) for part in state]
    return dataclasses.replace(
      layout, action=_named_once(columns), state=_named_once(turned)
    )

  def convert(
    self, action: np.ndarray, state: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Converts an episode's float[T, A] and float[T, S].

    Raises:
      UserError: numbers that are no rotation.
    """
    if not self.turns and not self.moves:
      return action, state
    parts = {
      "action": self._parts("action", action.shape[1]),
      "state": self._parts("state", state.shape[1]),
    }
    acts = [_read(part, action) for part in parts["action"]]
    states = [_read(part, state) for part in parts["state"]]
    for move in self.moves:
      for i, j in _pairs(move, parts["action"], parts["state"]):
        acts[i] = _moved(acts[i], states[j], move.sign)
    return _written(acts, action), _written(states, state)

  def _parts(self, feature: str, width: int) -> list[_Part]:
    """Splits a feature of so many numbers; raises as `convert_layout`."""
    parts, end = [], 0
    turns = sorted(turn for turn in self.turns if turn.feature == feature)
    for turn in turns:
      if turn.start < end or turn.stop > width:
        raise UserError(
          f"got --rotation of {feature}[{turn.start}:{turn.stop}], expected "
          f"positions in 0 to {width}, none of them twice"
        )
      parts += [_Part(i, i + 1) for i in range(end, turn.start)]
      parts.append(_Part(turn.start, turn.stop, turn))
      end = turn.stop
    return parts + [_Part(i, i + 1) for i in range(end, width)]


def _turn(text: str) -> Turn:
  match = _ROTATION.fullmatch(text)
  if not match:
    raise UserError(
      f"got --rotation={text!r}, expected e.g. action[3:7]=quaternion_xyzw"
    )
  start, stop = int(match["start"]), int(match["stop"])
  width = rotations.width(match["form"])
  if stop - start != width:
    raise UserError(
      f"got {stop - start} numbers in --rotation={text!r}, expected {width}"
    )
  prefix = f"{match['prefix']}_" if match["prefix"] else ""
  return Turn(match["feature"], start, stop, match["form"], prefix)


def _move(text: str) -> Move:
  match = _MOTION.fullmatch(text)
  if not match:
    raise UserError(
      f"got --motion={text!r}, expected e.g. action[0:7]-state[0:7]"
    )
  return Move(
    1 if match["sign"] == "+" else -1,
    (int(match["start"]), int(match["stop"])),
    (int(match["from_start"]), int(match["from_stop"])),
  )


def _pairs(
  move: Move, action: Sequence[_Part], state: Sequence[_Part]
) -> list[tuple[int, int]]:
  """Pairs parts of the action with parts of the state.

  Raises:
    UserError: the positions cut a rotation, do not exist, or hold numbers and
      rotations in another order.
  """
  found = [_within(action, move.action), _within(state, move.state)]
  kinds = [
    [parts[i].turn is None for i in chosen]
    for parts, chosen in zip((action, state), found, strict=True)
  ]
  if not kinds[0] or kinds[0] != kinds[1]:
    raise UserError(
      f"got --motion of action[{move.action[0]}:{move.action[1]}] and state"
      f"[{move.state[0]}:{move.state[1]}], expected as many numbers and "
      "rotations on both sides, in the same order; name rotations with "
      "--rotation"
    )
  return list(zip(*found, strict=True))


def _within(parts: Sequence[_Part], span: tuple[int, int]) -> list[int]:
  """Finds the parts that make up a span exactly; none if they do not."""
  start, stop = span
  chosen = [
    i for i, p in enumerate(parts) if start <= p.start and p.stop <= stop
  ]
  covered = sum(parts[i].stop - parts[i].start for i in chosen)
  return chosen if covered == stop - start else []


def _columns(part: _Part, columns: Sequence[Column]) -> list[Column]:
  if part.turn is None:
    return [columns[part.start]]
  return [Column(part.turn.prefix + axis, "rad") for axis in _AXES]


def _named_once(parts: Sequence[Sequence[Column]]) -> tuple[Column, ...]:
  """Joins columns; raises UserError where two have one name."""
  columns = tuple(column for part in parts for column in part)
  names = [column.name for column in columns]
  twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
  if twice:
    raise UserError(
      f"got several numbers called {', '.join(twice)}, expected a name for "
      "each; give a rotation a prefix, such as "
      "--rotation='action[3:7]=quaternion_xyzw:left'"
    )
  return columns


def _motion_name(name: str, sign: int) -> str:
  """Turns `"left_x"` into `"left_dx"`; with sign 1, back again."""
  if sign > 0:
    return re.sub(r"^delta_|(^|(?<=_))d(?=(r?[xyz]|roll|pitch|yaw)$)", "", name)
  match = _POSE.fullmatch(name)
  if match:
    return f"{match['arm'] or ''}d{match['axis']}"
  return f"delta_{name}"


def _read(part: _Part, values: np.ndarray) -> np.ndarray | Rotation:
  numbers = values[:, part.start : part.stop]
  return rotations.read(numbers, part.turn.form) if part.turn else numbers


def _moved(
  action: np.ndarray | Rotation, state: np.ndarray | Rotation, sign: int
) -> np.ndarray | Rotation:
  """Computes the way from the state to a target, or the target of a way."""
  if isinstance(action, Rotation):
    return action * (state if sign > 0 else state.inv())
  return action + sign * state


def _written(
  parts: Sequence[np.ndarray | Rotation], values: np.ndarray
) -> np.ndarray:
  """Puts parts side by side, float[T, n]; without parts, as it was."""
  columns = [
    rotations.write(part) if isinstance(part, Rotation) else part
    for part in parts
  ]
  return np.concatenate(columns, -1) if columns else values

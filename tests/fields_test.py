"""Fields of configs and JSON files: what each slip is told."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import pytest

from rt2_jax.errors import UserError
from rt2_jax.fields import construct, defaults
from rt2_jax.ranges import at_least


@dataclasses.dataclass
class Arm:
  name: str
  joints: Annotated[int, at_least(1)] = 7
  cameras: Sequence[str] = ()
  limits: Mapping[str, float] | str = dataclasses.field(default_factory=dict)
  mirrored: bool = False
  tool: str | None = None
  mount: tuple[float, ...] = ()


def test_whole_fields_build_a_value():
  fields = {"name": "left", "cameras": ["wrist"]}
  assert construct(Arm, "arm.", fields) == Arm("left", 7, ["wrist"], {})
  assert defaults(Arm) == {
    "joints": 7,
    "cameras": (),
    "limits": {},
    "mirrored": False,
    "tool": None,
    "mount": (),
  }


@pytest.mark.parametrize(
  "fields",
  [
    {"limits": "widest"},
    {"tool": None},
    {"tool": "hand"},
    {"mount": [0.0, 1.0]},
    {"mirrored": True},
  ],
)
def test_each_of_several_types_is_taken(fields):
  assert construct(Arm, "arm.", {"name": "left", **fields}) == Arm(
    "left", **fields
  )


@pytest.mark.parametrize(
  ("fields", "parts"),
  [
    ("left", ["arm = 'left'", "name, joints"]),
    ({}, ["no arm.name"]),
    ({"name": "left", "joint": 6}, ["'joint'", "mean 'joints'"]),
    ({"name": 3}, ["arm.name = 3", "a text"]),
    ({"name": "left", "joints": 0}, ["arm.joints = 0", "at least 1"]),
    ({"name": "left", "cameras": "wrist"}, ["arm.cameras = 'wrist'"]),
    ({"name": "left", "limits": []}, ["arm.limits = []", "{…} or a text"]),
    ({"name": "left", "limits": None}, ["arm.limits = None"]),
    ({"name": "left", "mirrored": "False"}, ["arm.mirrored = 'False'", "True"]),
    ({"name": "left", "tool": 3}, ["arm.tool = 3", "a text or None"]),
    ({"name": "left", "mount": 1.0}, ["arm.mount = 1.0", "[…]"]),
  ],
)
def test_a_slip_is_named(fields, parts):
  with pytest.raises(UserError) as caught:
    construct(Arm, "arm.", fields)
  for part in parts:
    assert part in str(caught.value)

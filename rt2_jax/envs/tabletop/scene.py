"""Simulates the tabletop in MuJoCo: a hand with two fingers, blocks, mats.

Right is +x, back (away from the camera) is +y, up is +z; the table's surface
is z = 0. The hand's position is the point between its fingertips. Blocks lie
in slots of one compiled model: an episode fills some and parks the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import mujoco
import numpy as np

MAX_BLOCKS = 5
MAX_MATS = 3

CONTROL_HZ = 5
BLOCK = 0.045  # half the side of a block, m
BLOCK_HEIGHT = 0.02  # half the height of a block, m
MAT = 0.052  # half the side of a mat, m
OPENING = 0.06  # from the middle to a finger of the open hand, m
TEXELS = 72  # per side of a face

# The hand stays within this box (m) and turns at most so far (rad).
LOW = np.array([-0.20, -0.20, 0.008])
HIGH = np.array([0.20, 0.20, 0.20])
TURN_LOW = np.array([-0.5, -0.5, -1.6])
TURN_HIGH = -TURN_LOW

_SUBSTEPS = 50  # of 4 ms
_CHUNKS = 5  # in which the hand's target moves on within a control step
_PARKED = np.array([0.0, 0.0, -1.0])
_OUT_OF_SIGHT = 4  # a geom group that no camera draws


@dataclasses.dataclass(frozen=True)
class Thing:
  """A block or a mat that lies on the table.

  Attributes:
    name: the concept that its picture shows.
    is_block: False for a mat, which is flat and stays where it is.
    x: metres.
    y: metres.
    yaw: radians.
  """

  name: str
  is_block: bool
  x: float
  y: float
  yaw: float = 0.0

  @property
  def place(self) -> np.ndarray:
    """float64[2], metres."""
    return np.array([self.x, self.y])


def model_xml(image_size: int) -> str:
  """Writes the scene in MuJoCo's XML; pictures come later, as textures."""
  hand, grips = _hand_xml()
  return f"""
<mujoco model="tabletop">
  <option timestep="{1 / CONTROL_HZ / _SUBSTEPS}" integrator="implicitfast"
    cone="elliptic" impratio="10"/>
  <visual>
    <global offwidth="{image_size}" offheight="{image_size}"/>
    <quality shadowsize="0" offsamples="4"/>
    <headlight ambient=".55 .55 .55" diffuse=".25 .25 .25" specular="0 0 0"/>
    <map znear=".02"/>
  </visual>
  <asset>
    {_textures_xml()}
    <texture name="table" type="2d" builtin="flat" rgb1="1 1 1" rgb2="1 1 1"
      width="128" height="128"/>
    <material name="table" texture="table" specular="0"/>
  </asset>
  <worldbody>
    <light name="lamp" type="directional" dir="-.2 .4 -1"
      diffuse=".25 .25 .25" specular="0 0 0" castshadow="false"/>
    <geom name="table" type="plane" size=".4 .4 .1" material="table"
      friction="1 .01 .0005"/>
    <camera name="camera" pos="0 -.36 .70" xyaxes="1 0 0 0 .88 .475"
      fovy="32"/>
    {_things_xml()}
    <body name="shadow" mocap="true" pos="0 0 .0015"><geom name="shadow"
      type="cylinder" size=".022 .0004" rgba="0 0 0 .45" contype="0"
      conaffinity="0"/></body>
    <body name="target" mocap="true"/>
    {hand}
  </worldbody>
  <equality>
    <weld body1="target" body2="hand" solref=".01 1" solimp=".95 .99 .001"/>
  </equality>
  <actuator>{grips}</actuator>
</mujoco>"""


def _textures_xml() -> str:
  """Writes a cube's texture and its material for each slot."""
  return "".join(
    f'<texture name="{name}" type="cube" builtin="flat" rgb1="1 1 1" '
    f'rgb2="1 1 1" width="{TEXELS}" height="{6 * TEXELS}"/>'
    f'<material name="{name}" texture="{name}" specular="0"/>'
    for name in slot_names()
  )


def _things_xml() -> str:
  """Writes the blocks, which can be moved, and the mats without contacts."""
  blocks = "".join(
    f'<body name="{name}"><freejoint name="{name}"/><geom name="{name}" '
    f'type="box" size="{BLOCK} {BLOCK} {BLOCK_HEIGHT}" material="{name}" '
    'mass=".05" friction="1.2 .01 .0005" condim="4"/></body>'
    for name in slot_names()[:MAX_BLOCKS]
  )
  mats = "".join(
    f'<body name="{name}" mocap="true"><geom name="{name}" type="box" '
    f'size="{MAT} {MAT} .001" material="{name}" contype="0" '
    'conaffinity="0"/></body>'
    for name in slot_names()[MAX_BLOCKS:]
  )
  return blocks + mats


def _hand_xml() -> tuple[str, str]:
  """Writes the hand with its fingers and their actuators."""
  fingers = "".join(
    f'<body name="{name}" pos="{-side * (OPENING + 0.005)} 0 .028" '
    f'gravcomp="1"><joint name="{name}" type="slide" axis="{side} 0 0" '
    f'range="0 {OPENING}" damping="20"/><geom name="{name}" type="box" '
    'size=".005 .011 .028" mass=".05" rgba=".95 .45 .1 1" '
    'friction="2 .02 .001" condim="4"/></body>'
    for name, side in (("left", 1), ("right", -1))
  )
  grips = "".join(
    f'<position joint="{name}" kp="400" ctrlrange="0 {OPENING}" '
    'forcerange="-12 12"/>'
    for name in ("left", "right")
  )
  hand = f"""
    <body name="hand" gravcomp="1">
      <freejoint name="hand"/>
      <inertial pos="0 0 .04" mass="1" diaginertia=".005 .005 .005"/>
      <geom name="lamp" type="box" size=".07 .01 .006" pos="0 0 .062"
        rgba=".1 .8 .2 1" contype="0" conaffinity="0"/>
      <geom type="cylinder" size=".01 .015" pos="0 0 .083"
        rgba=".25 .25 .28 1" contype="0" conaffinity="0"/>
      {fingers}
    </body>"""
  return hand, grips


def slot_names() -> list[str]:
  """Names in the model: the blocks' slots, then the mats'."""
  return [f"block{i}" for i in range(MAX_BLOCKS)] + [
    f"mat{i}" for i in range(MAX_MATS)
  ]


class World:
  """Things on the table and the hand above it, moved by RT-2's numbers."""

  def __init__(self, image_size: int):
    self.model = mujoco.MjModel.from_xml_string(model_xml(image_size))
    self.data = mujoco.MjData(self.model)
    self.things: tuple[Thing, ...] = ()
    self.slots: list[str] = []  # of each thing
    self.position = np.zeros(3)  # commanded, m
    self.turn = np.zeros(3)  # commanded roll, pitch, yaw, rad
    self.gripper = 1.0  # commanded, 1 = open
    self._fingers = [self.model.geom(f).id for f in ("left", "right")]
    self._bodies: list[int] = []
    self._geoms: list[int] = []
    self._first_spot = np.zeros((0, 3))

  def reset(
    self, things: Sequence[Thing], position: np.ndarray, yaw: float = 0.0
  ) -> None:
    """Lays things on the table and holds the open hand above it.

    Args:
      things: at most `MAX_BLOCKS` blocks and `MAX_MATS` mats.
      position: float[3] of the hand, metres.
      yaw: of the hand, radians.
    """
    mujoco.mj_resetData(self.model, self.data)
    blocks = iter(slot_names()[:MAX_BLOCKS])
    mats = iter(slot_names()[MAX_BLOCKS:])
    self.things = tuple(things)
    self.slots = [next(blocks if t.is_block else mats) for t in self.things]
    self._bodies = [self.model.body(slot).id for slot in self.slots]
    self._geoms = [self.model.geom(slot).id for slot in self.slots]
    used = dict(zip(self.slots, self.things, strict=True))
    for name in slot_names():
      self._put(name, used.get(name))
    self.position = np.array(position, float)
    self.turn, self.gripper = np.array([0.0, 0.0, yaw]), 1.0
    joint = self.data.joint("hand")
    joint.qpos[:3], joint.qpos[3:] = self.position, quaternion(self.turn)
    self._hold(self.position, self.turn)
    mujoco.mj_forward(self.model, self.data)
    self._first_spot = self.spots()

  def _put(self, name: str, thing: Thing | None) -> None:
    """Fills a slot, or parks it out of sight and out of reach."""
    geom, body = self.model.geom(name), self.model.body(name)
    height = BLOCK_HEIGHT if name.startswith("block") else 0.0005
    spot = _PARKED if thing is None else np.array([thing.x, thing.y, height])
    turn = quaternion([0.0, 0.0, 0.0 if thing is None else thing.yaw])
    geom.group = _OUT_OF_SIGHT if thing is None else 0
    if name.startswith("block"):
      geom.contype = geom.conaffinity = int(thing is not None)
      self.model.body_gravcomp[body.id] = float(thing is None)
      joint = self.data.joint(name)
      joint.qpos[:3], joint.qpos[3:] = spot, turn
    else:
      self.data.mocap_pos[body.mocapid] = spot
      self.data.mocap_quat[body.mocapid] = turn

  def step(self, motion: np.ndarray, turn: np.ndarray, gripper: float) -> None:
    """Lets 1 / `CONTROL_HZ` seconds pass.

    Args:
      motion: float[3], metres.
      turn: float[3], added to roll, pitch and yaw, radians.
      gripper: 0 closed .. 1 open.
    """
    here, angle = self.position, self.turn
    self.position = np.clip(here + motion, LOW, HIGH)
    self.turn = np.clip(angle + turn, TURN_LOW, TURN_HIGH)
    self.gripper = float(np.clip(gripper, 0.0, 1.0))
    self.data.ctrl[:] = OPENING * (1.0 - self.gripper)
    for chunk in range(1, _CHUNKS + 1):
      part = chunk / _CHUNKS
      self._hold(
        here + part * (self.position - here),
        angle + part * (self.turn - angle),
      )
      mujoco.mj_step(self.model, self.data, nstep=_SUBSTEPS // _CHUNKS)

  def state(self) -> np.ndarray:
    """Returns `TABLETOP_STATE`, float32[7], as commanded."""
    return np.float32([*self.position, *self.turn, self.gripper])

  def _hold(self, position: np.ndarray, turn: np.ndarray) -> None:
    """Moves the point that the hand is tied to, and the hand's shadow."""
    data, model = self.data, self.model
    target = model.body("target").mocapid
    data.mocap_pos[target] = position
    data.mocap_quat[target] = quaternion(turn)
    shadow = model.body("shadow").mocapid
    data.mocap_pos[shadow, :2] = np.reshape(position[:2], (1, 2))
    # The lamp on the hand tells open from closed, as real grippers' do.
    lamp = model.geom("lamp")
    lamp.rgba = (0.1, 0.8, 0.2, 1) if self.gripper > 0.5 else (0.9, 0.1, 0.6, 1)

  def spots(self) -> np.ndarray:
    """Returns the middles of the things, float64[N, 3], metres."""
    return self.data.xpos[self._bodies]

  def yaw(self, thing: int) -> float:
    """Returns a thing's yaw, radians in -pi .. pi."""
    axes = self.data.xmat[self._bodies[thing]].reshape(3, 3)
    return float(np.arctan2(axes[1, 0], axes[0, 0]))

  def moved(self) -> np.ndarray:
    """Measures how far each thing has moved from its start, float64[N], m."""
    return np.linalg.norm(self.spots() - self._first_spot, axis=1)

  def find(self, name: str) -> int:
    """Finds the thing that shows `name`; -1 when none does."""
    names = [thing.name for thing in self.things]
    return names.index(name) if name in names else -1

  def hand(self) -> np.ndarray:
    """Returns the point between the fingertips, float64[3], metres."""
    return self.data.body("hand").xpos.copy()

  def held(self) -> int | None:
    """Finds the thing that both fingers touch."""
    pairs = self.data.contact.geom
    touching = [
      set(pairs[(pairs == finger).any(1)].ravel().tolist())
      for finger in self._fingers
    ]
    both = touching[0] & touching[1]
    return next((i for i, g in enumerate(self._geoms) if g in both), None)


def quaternion(turn: Sequence[float]) -> np.ndarray:
  """Converts roll, pitch, yaw (rad, base's axes) to float64[4] w x y z."""
  result = np.zeros(4)
  mujoco.mju_euler2Quat(result, np.asarray(turn, float), "XYZ")
  return result

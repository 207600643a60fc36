"""The action spaces of the papers and of the simulated tabletop.

Numpy only: robots and converters import this file without JAX.
"""

from __future__ import annotations

import dataclasses
import math

from rt2_jax.actions import ActionSpace, Dimension, Span, centred


def _pose_deltas(metres: Span, radians: Span) -> tuple[Dimension, ...]:
  """Makes the six dimensions of an end-effector displacement."""
  return (
    *(Dimension("d" + a, "m", *metres) for a in "xyz"),
    *(Dimension("d" + a, "rad", *radians) for a in ("roll", "pitch", "yaw")),
  )


# The paper gives the 8 fields but neither bounds nor the coding of terminate.
# Bounds are RT-1's, centred. RT-1's mode 0 is "terminate" and the paper's
# strings begin with 1 while the robot moves, so number 0 means terminate = 1.0
# (inferred). The gripper is absolute, 1 = open, as today's datasets have it.
RT2 = ActionSpace(
  "rt2",
  "robot base",
  (
    Dimension("terminate", "yes/no", values=(1.0, 0.0), at_end=1.0),
    *_pose_deltas(centred(1.0), centred(math.pi / 2)),
    Dimension("gripper", "open", 0.0, 1.0, at_end=None),
  ),
)


def _in_units(name: str, metres: str, radians: str) -> ActionSpace:
  """RT-2's numbers in other units, -1 to 1 unless a source has bounds."""
  units = {"m": metres, "rad": radians}
  dimensions = (
    dataclasses.replace(d, unit=units[d.unit], low=-1.0, high=1.0)
    if d.unit in units
    else d
    for d in RT2.dimensions
  )
  return ActionSpace(name, RT2.frame, tuple(dimensions))


RT2_SPEEDS = _in_units("rt2_speeds", "m/s", "rad/s")
# A step is the largest that the robot's controller makes at once.
RT2_STEPS = _in_units("rt2_steps", "step", "step")

# The simulated tabletop (rt2_jax/envs/tabletop): RT-2's numbers in the small
# steps of 5 Hz, so that a bin is 0.4 mm or 2 mrad.
TABLETOP = dataclasses.replace(RT2, name="tabletop").with_bounds(
  {
    **{name: centred(0.05) for name in ("dx", "dy", "dz")},
    **{name: centred(0.25) for name in ("droll", "dpitch", "dyaw")},
  }
)

# Where the tabletop's hand is commanded to be, in the box that it stays in.
TABLETOP_STATE = ActionSpace(
  "tabletop_state",
  "table",
  (
    *(Dimension(axis, "m", *centred(0.2)) for axis in "xy"),
    Dimension("z", "m", 0.0, 0.2),
    *(Dimension(name, "rad", *centred(0.5)) for name in ("roll", "pitch")),
    Dimension("yaw", "rad", *centred(1.6)),
    Dimension("gripper", "open", 0.0, 1.0),
  ),
)

# RT-1's 11 tokens (robotics_transformer, trained_checkpoints/rt1main).
RT1 = ActionSpace(
  "rt1",
  "robot base",
  (
    Dimension("mode", "terminate/arm/base", values=(0.0, 1.0, 2.0)),
    *_pose_deltas((-1.0, 1.0), (-math.pi / 2, math.pi / 2)),
    Dimension("gripper_closedness", "close", -1.0, 1.0, at_end=None),
    Dimension("base_dyaw", "rad", -math.pi, math.pi),
    Dimension("base_dx", "m", -1.0, 1.0),
    Dimension("base_dy", "m", -1.0, 1.0),
  ),
)

# Language-Table: `X Y` with X, Y in -10..+10 (paper, section 4.1); the
# environment's action box is ±0.1 m, so that one unit is 1 cm (inferred).
LANGUAGE_TABLE = ActionSpace(
  "language_table",
  "table",
  tuple(
    Dimension(
      name, "m", values=tuple(i / 100 for i in range(-10, 11)), first=-10
    )
    for name in ("dx", "dy")
  ),
)

"""Rotations and motions are scipy's, in every form."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data import rotations
from data.conversions import Conversions
from data.recordings import Column, Layout
from rt2_jax.errors import UserError

FORMS = (*rotations.WIDTHS, "euler_xyz", "euler_ZYX", "euler_yxz_deg")
RANDOM = Rotation.random(50, rng=np.random.default_rng(0))
MATRICES = RANDOM.as_matrix()
EXPECTED = {
  "quaternion_xyzw": RANDOM.as_quat(),
  "quaternion_wxyz": np.roll(RANDOM.as_quat(), 1, axis=-1),
  "axis_angle": RANDOM.as_rotvec(),
  "matrix": MATRICES.reshape(-1, 9),
  "six_d_columns": np.hstack([MATRICES[:, :, 0], MATRICES[:, :, 1]]),
  "six_d_rows": MATRICES[:, :2].reshape(-1, 6),
  "euler_xyz": RANDOM.as_euler("xyz"),
  "euler_ZYX": RANDOM.as_euler("ZYX"),
  "euler_yxz_deg": RANDOM.as_euler("yxz", degrees=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_and_written_as_scipy_does(form):
  values = EXPECTED[form]
  assert values.shape == (50, rotations.width(form))
  read = rotations.read(values, form)
  assert (read * RANDOM.inv()).magnitude().max() < 1e-6
  np.testing.assert_allclose(rotations.write(RANDOM, form), values, atol=1e-12)


@pytest.mark.parametrize("form", ["six_d_columns", "six_d_rows"])
def test_six_numbers_that_are_not_orthonormal_are_made_so(form):
  """A network's output: the first vector keeps its direction."""
  values = EXPECTED[form].copy()
  values[:, 3:] = 3 * values[:, 3:] + 0.5 * values[:, :3]
  read = rotations.read(2 * values, form)
  assert (read * RANDOM.inv()).magnitude().max() < 1e-6


def test_euler_orders_differ_and_roll_pitch_yaw_is_about_fixed_axes():
  angles = np.array([[0.3, -0.2, 0.9]])
  fixed = rotations.read(angles, rotations.ROLL_PITCH_YAW).as_matrix()[0]
  roll, pitch, yaw = (
    Rotation.from_rotvec(angle * axis).as_matrix()
    for angle, axis in zip(angles[0], np.eye(3), strict=True)
  )
  np.testing.assert_allclose(fixed, yaw @ pitch @ roll, atol=1e-12)


@pytest.mark.parametrize(
  ("form", "values"),
  [
    ("quaternion_xyzw", [[0.0, 0, 0, 0]]),
    ("six_d_rows", [[1.0, 0, 0, 2, 0, 0]]),
  ],
)
def test_numbers_that_are_no_rotation_are_refused(form, values):
  with pytest.raises(UserError, match="no rotation"):
    rotations.read(np.array(values), form)


def test_an_unknown_form_is_named():
  with pytest.raises(UserError, match="quaternion_xyzw"):
    rotations.width("quaternion")


# ---------------------------------------------------------------- conversions

NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw", "elbow", "grip")
STATE_NAMES = ("px", "py", "pz", "a", "b", "c", "joint")
LAYOUT = Layout(
  {"primary": "cam"},
  tuple(map(Column, NAMES)),
  tuple(map(Column, STATE_NAMES)),
  10.0,
)
TURNS = ("action[3:7]=quaternion_xyzw", "state[3:6]=axis_angle:tool")


@pytest.fixture
def recorded():
  rng = np.random.default_rng(1)
  action, state = rng.normal(size=(50, 9)), rng.normal(size=(50, 7))
  action[:, 3:7] = EXPECTED["quaternion_xyzw"]
  return action, state


def test_rotations_become_roll_pitch_yaw_where_they_stand(recorded):
  action, state = recorded
  found, others = Conversions.parse(TURNS).convert(action, state)
  expected = np.hstack([action[:, :3], RANDOM.as_euler("xyz"), action[:, 7:]])
  np.testing.assert_allclose(found, expected)
  turned = Rotation.from_rotvec(state[:, 3:6]).as_euler("xyz")
  np.testing.assert_allclose(
    others, np.hstack([state[:, :3], turned, state[:, 6:]])
  )
  layout = Conversions.parse(TURNS).convert_layout(LAYOUT)
  names = [c.name for c in layout.action]
  assert names == ["x", "y", "z", "roll", "pitch", "yaw", "elbow", "grip"]
  assert [c.name for c in layout.state][3:6] == [
    "tool_roll",
    "tool_pitch",
    "tool_yaw",
  ]
  assert [c.unit for c in layout.action][3:6] == ["rad"] * 3


def test_targets_become_motions_and_back(recorded):
  action, state = recorded
  there = Conversions.parse(TURNS, ["action[0:8]-state[0:7]"])
  motion, _ = there.convert(action, state)
  np.testing.assert_allclose(motion[:, :3], action[:, :3] - state[:, :3])
  np.testing.assert_allclose(motion[:, 6], action[:, 7] - state[:, 6])
  np.testing.assert_array_equal(motion[:, 7], action[:, 8])
  here = Rotation.from_rotvec(state[:, 3:6])
  turned = Rotation.from_euler("xyz", motion[:, 3:6])
  assert (turned * here * RANDOM.inv()).magnitude().max() < 1e-6
  names = [c.name for c in there.convert_layout(LAYOUT).action]
  assert names == [
    "dx",
    "dy",
    "dz",
    "droll",
    "dpitch",
    "dyaw",
    "delta_elbow",
    "grip",
  ]
  back = Conversions.parse(
    ["action[3:6]=euler_xyz", TURNS[1]], ["action[0:7]+state[0:7]"]
  )
  targets, _ = back.convert(motion, state)
  again = Rotation.from_euler("xyz", targets[:, 3:6])
  assert (again * RANDOM.inv()).magnitude().max() < 1e-6
  np.testing.assert_allclose(targets[:, :3], action[:, :3])
  layout = there.convert_layout(LAYOUT)
  layout = Layout({}, layout.action, LAYOUT.state, 10.0)
  names = [c.name for c in back.convert_layout(layout).action]
  assert names[:7] == ["x", "y", "z", "roll", "pitch", "yaw", "elbow"]


@pytest.mark.parametrize(
  ("turns", "moves", "told"),
  [
    (["action[3:6]=quaternion_xyzw"], [], "3 numbers.*expected 4"),
    (["action[7:11]=quaternion_xyzw"], [], "0 to 9"),
    (["action[3:7]=matrices"], [], "quaternion_xyzw"),
    (["action=matrix"], [], r"action\[3:7\]=quaternion_xyzw"),
    ([TURNS[0], "action[5:8]=axis_angle"], [], "none of them twice"),
    (
      ["action[0:3]=axis_angle", "action[3:7]=quaternion_xyzw"],
      [],
      "several numbers called roll, pitch, yaw",
    ),
    (TURNS, ["action[0:5]-state[0:4]"], "same order"),
    (TURNS, ["action[0:7]-state[0:3]"], "same order"),
    ([], ["action[0:7]*state[0:7]"], r"--motion"),
  ],
)
def test_flags_that_do_not_fit_are_named(turns, moves, told):
  with pytest.raises(UserError, match=told):
    Conversions.parse(turns, moves).convert_layout(LAYOUT)

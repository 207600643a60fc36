"""Rotations in the forms that robots record, by scipy's `Rotation`.

Shapes: T steps.
"""

from __future__ import annotations

import re

import numpy as np
from scipy.spatial.transform import Rotation

from rt2_jax.errors import UserError, unknown_name

# How many numbers each form has. "six_d" is the first two columns, or the
# first two rows, of the rotation matrix (Zhou et al. 2019, section 4).
WIDTHS = {
  "quaternion_xyzw": 4,
  "quaternion_wxyz": 4,
  "axis_angle": 3,
  "matrix": 9,
  "six_d_columns": 6,
  "six_d_rows": 6,
}
# scipy's words: xyz about fixed axes, XYZ about axes that turn along.
_EULER = re.compile(r"euler_(?P<order>[xyz]{3}|[XYZ]{3})(?P<degrees>_deg)?")
ROLL_PITCH_YAW = "euler_xyz"


def width(form: str) -> int:
  """Returns how many numbers a form has; raises UserError for an unknown."""
  if _EULER.fullmatch(form):
    return 3
  if form not in WIDTHS:
    known = [*WIDTHS, "euler_xyz", "euler_XYZ", "euler_zyx_deg"]
    raise unknown_name("a form of rotations", form, known)
  return WIDTHS[form]


def read(values: np.ndarray, form: str) -> Rotation:
  """Reads rotations, float[T, n].

  Raises:
    UserError: an unknown form, or numbers that are no rotation, such as a
      quaternion of length 0.
  """
  values = np.asarray(values, np.float64)
  euler = _EULER.fullmatch(form)
  try:
    if euler:
      degrees = bool(euler["degrees"])
      return Rotation.from_euler(euler["order"], values, degrees)
    if form == "axis_angle":
      return Rotation.from_rotvec(values)
    if form.startswith("quaternion"):
      return Rotation.from_quat(values, scalar_first=form.endswith("wxyz"))
    if form == "matrix":
      return Rotation.from_matrix(values.reshape(-1, 3, 3))
    return Rotation.from_matrix(_orthonormal(values, form))
  except ValueError as error:
    raise UserError(
      f"got numbers that are no rotation in the form {form!r} ({error}); "
      "name the form in which they are recorded, or drop this episode"
    ) from error


def write(rotation: Rotation, form: str = ROLL_PITCH_YAW) -> np.ndarray:
  """Writes rotations as float64[T, n], the inverse of `read`."""
  euler = _EULER.fullmatch(form)
  if euler:
    return rotation.as_euler(euler["order"], bool(euler["degrees"]))
  if form == "axis_angle":
    return rotation.as_rotvec()
  if form.startswith("quaternion"):
    return rotation.as_quat(scalar_first=form.endswith("wxyz"))
  matrix = rotation.as_matrix()
  if form == "matrix":
    return matrix.reshape(-1, 9)
  if form == "six_d_columns":
    return np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], -1)
  return np.concatenate([matrix[:, 0], matrix[:, 1]], -1)


def _orthonormal(values: np.ndarray, form: str) -> np.ndarray:
  """Completes two vectors to matrices, float64[T, 3, 3], by Gram-Schmidt.

  Raises:
    ValueError: the two are parallel, or one has length 0.
  """
  first = _unit(values[:, :3])
  second = values[:, 3:]
  second = _unit(second - (first * second).sum(-1, keepdims=True) * first)
  axis = -1 if form == "six_d_columns" else -2
  return np.stack([first, second, np.cross(first, second)], axis)


def _unit(vectors: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
  if not (lengths > 1e-6).all():
    raise ValueError("two vectors that span no plane")
  return vectors / lengths

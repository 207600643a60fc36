"""Environments in which a robot can be tried, all without a screen."""

import ctypes.util
import os

# MuJoCo reads this once, when it is imported; by itself it would ask for a
# screen. Whoever sets it knows better.
for _library, _backend in (("EGL", "egl"), ("OSMesa", "osmesa")):
  if ctypes.util.find_library(_library):
    os.environ.setdefault("MUJOCO_GL", _backend)
    break

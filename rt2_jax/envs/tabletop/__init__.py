"""The simulated tabletop, drawn without a screen.

Importing it registers "rt2_jax/Tabletop-v0" with gymnasium.
"""

import ctypes.util
import importlib.util
import os

from rt2_jax import shipped

for _package in ("gymnasium", "mujoco", "PIL"):
  if importlib.util.find_spec(_package) is None:
    raise ModuleNotFoundError(
      f"got no package {_package!r}, expected the simulator's; run "
      f"`{shipped.install_command('sim')}`"
    )

# MuJoCo reads this once, when it is imported; by itself it would ask for a
# screen. A value that is set already stays.
for _library, _backend in (("EGL", "egl"), ("OSMesa", "osmesa")):
  if ctypes.util.find_library(_library):
    os.environ.setdefault("MUJOCO_GL", _backend)
    break


def _register() -> None:
  import gymnasium  # after the check above, whose message says more

  gymnasium.register(
    "rt2_jax/Tabletop-v0",
    entry_point="rt2_jax.envs.tabletop.environment:TabletopEnv",
  )


_register()

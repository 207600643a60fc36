"""Runs launch/train.py with its devices in an order that a TPU slice has.

CPU devices are ordered by process; chips of a slice are not. Of 2 processes
with 4 devices each the mesh sees 0 0 1 1 0 0 1 1, of 4 with 2 each
0 1 2 3 0 1 2 3.
"""

import pathlib
import runpy

from rt2_jax.train_config import TrainConfig

_TOGETHER = 4  # devices of all processes that stand side by side, at least

_make_mesh = TrainConfig.make_mesh


def interleaved(devices):
  processes = 1 + max(device.process_index for device in devices)
  block = max(_TOGETHER // processes, 1)
  local = {}
  for device in devices:
    local.setdefault(device.process_index, []).append(device)
  place = {
    device: (i // block, process)
    for process, own in local.items()
    for i, device in enumerate(own)
  }
  return sorted(devices, key=place.get)


if __name__ == "__main__":
  TrainConfig.make_mesh = lambda self, devices: _make_mesh(
    self, interleaved(devices)
  )
  program = pathlib.Path(__file__).parents[1] / "launch" / "train.py"
  runpy.run_path(str(program), run_name="__main__")

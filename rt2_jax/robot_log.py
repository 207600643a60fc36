"""What a robot saw, was told and did, in one file for each episode.

Written on the robot with numpy alone. Shapes: N steps, H actions of a chunk
(the horizon), D dimensions of an action, S numbers of a state.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from rt2_jax import storage
from rt2_jax.errors import UserError
from rt2_jax.robot_loop import EpisodeLog
from rt2_jax.storage import Path

FORMAT = 1
DESCRIPTION = "robot.json"  # beside the episodes
_PREFIX = "episode_"
_DAMAGE = (
  *(OSError, ValueError, LookupError, EOFError),
  *(zipfile.BadZipFile, zlib.error),
)


def write(
  folder: Path, log: EpisodeLog, metadata: Mapping[str, Any], hz: float
) -> Path | None:
  """Writes an episode; returns its file, or None where no step was taken.

  A robot.json beside it says what its numbers mean, with the policy's bounds.

  The file is an .npz without pickled objects: `action` float32[N, D] as carried
  out, `answer` float32[N, H, D] to each step's question and `answered` bool[N],
  `asked`, `is_correction` bool[N], `held_s` float32[N], `image_CAMERA`
  uint8[N, H, W, 3], `state` float32[N, S], and the text `about`, JSON: the
  instructions, why it ended, its rate and the service's metadata.
  """
  if not log.steps:
    return None
  folder.mkdir(parents=True, exist_ok=True)
  taken = [int(path.stem.removeprefix(_PREFIX)) for path in files(folder)]
  number = max(taken, default=-1) + 1
  data = io.BytesIO()
  np.savez_compressed(data, **_arrays(log, metadata, hz))
  path = folder / f"{_PREFIX}{number:06d}.npz"
  storage.write(path, data.getvalue())
  described = json.dumps(describe(metadata, hz), indent=2) + "\n"
  storage.write(folder / DESCRIPTION, described)
  return path


def describe(metadata: Mapping[str, Any], hz: float) -> dict[str, Any]:
  """Makes the robot.json of the episodes, for records of an importer."""
  names = metadata["action_names"]
  end = names.index("terminate") if "terminate" in names else None
  state = [
    {
      "name": name,
      "unit": unit,
      "feature": "observation/state",
      "column": i,
      "low": metadata["state_low"][i],
      "high": metadata["state_high"][i],
    }
    for i, (name, unit) in enumerate(
      zip(metadata["state_names"], metadata["state_units"], strict=True)
    )
  ]
  return {
    "rate_hz": hz,
    "frame": metadata["action_frame"],
    "cameras": {c: f"observation/{c}" for c in metadata["cameras"]},
    "instruction": "language_instruction",
    "terminate": None if end is None else {"feature": "action", "column": end},
    "action": [_number(metadata, i) for i in range(len(names)) if i != end],
    **({"state": state} if state else {}),
  }


def _number(metadata: Mapping[str, Any], i: int) -> dict[str, Any]:
  """One number of an action, in a robot.json."""
  unit = metadata["action_units"][i]
  low, high = metadata["action_low"][i], metadata["action_high"][i]
  place = {
    "name": metadata["action_names"][i],
    "feature": "action",
    "column": i,
  }
  if unit in ("open", "close"):
    ends = (high, low) if unit == "open" else (low, high)
    return place | {"gripper": dict(zip(("open", "closed"), ends, strict=True))}
  return place | {"unit": unit, "low": low, "high": high}


def _arrays(
  log: EpisodeLog, metadata: Mapping[str, Any], hz: float
) -> dict[str, np.ndarray]:
  steps = log.steps
  shape = metadata["action_horizon"], metadata["action_dim"]
  none = np.zeros(shape, np.float32)
  about = {
    "format": FORMAT,
    "instructions": [step.observation.instruction for step in steps],
    "plans": {str(i): plan for i, plan in log.plans.items() if plan},
    "unanswered": {str(i): why for i, why in log.unanswered.items()},
    "reason": log.reason,
    "rate_hz": hz,
    "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    "metadata": dict(metadata),
  }
  arrays = {
    "action": np.stack([step.action for step in steps]),
    "answer": np.stack([log.answers.get(i, none) for i in range(len(steps))]),
    "answered": np.asarray([i in log.answers for i in range(len(steps))]),
    "asked": np.asarray([step.asked for step in steps]),
    "is_correction": np.asarray([step.is_correction for step in steps]),
    "held_s": np.float32([step.held_s for step in steps]),
    "about": np.asarray(json.dumps(about)),
  }
  for camera in steps[0].observation.images:
    frames = [step.observation.images[camera][-1] for step in steps]
    arrays[f"image_{camera}"] = np.stack(frames)
  states = [step.observation.state for step in steps]
  if states[0] is not None:
    arrays["state"] = np.stack(states).astype(np.float32)
  return arrays


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads what `write` wrote: `about`, and the arrays.

  Raises:
    UserError: not such a file.
  """
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("about")))
    if about["format"] != FORMAT:
      raise ValueError(f"format {about['format']}")
  except _DAMAGE as error:
    raise UserError(
      f"got {path}, which is no episode of launch/robot.py ({error}); remove it"
    ) from error
  return about, arrays


def files(folder: Path) -> list[Path]:
  """Lists a folder's episodes, in the order of writing."""
  return sorted(folder.glob(f"{_PREFIX}{'[0-9]' * 6}.npz"))

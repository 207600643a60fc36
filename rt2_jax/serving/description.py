"""What a service says of its policy, and what a client may say it expects.

Beside openpi's and RoboArena's fields stand the names, units and bounds of an
action, the cameras, the state and the hashes of the checkpoint: what a robot
needs to act in physical units, and what two programs must agree on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.observation import PRIMARY, ObservationSpec

STATE_KEY, INSTRUCTION_KEY = "observation/state", "prompt"
TOKEN_VARIABLE = "RT2_TOKEN"  # of the environment, for services and clients
UNAVAILABLE = "unavailable: "  # begins a refusal after which one may ask again
_SHOWN = 200  # characters of a claim in an error
_CLAIMED = 1000  # numbers of an array in a claim


def image_key(camera: str) -> str:
  """Names a camera's image as openpi's observations do."""
  return f"observation/{'' if camera == PRIMARY else camera + '_'}image"


def read_token() -> str:
  """Reads the service's token from the environment; "" without one.

  Raises:
    UserError: characters that do not arrive as they are in an HTTP header.
  """
  token = os.environ.get(TOKEN_VARIABLE, "")
  if not (token.isascii() and token.isprintable() and token == token.strip()):
    raise UserError(
      f"got {TOKEN_VARIABLE} with a line's end, a space around it, or other "
      "characters than ASCII, expected a token such as `openssl rand -hex 32` "
      "prints"
    )
  return token


def describe(
  actions: ActionTokenizer,
  spec: ObservationSpec,
  camera_sizes: Mapping[str, tuple[int, int]],
  control_hz: float | None,
  checkpoint: Mapping[str, Any],
) -> dict[str, Any]:
  """Makes the metadata, JSON values.

  Args:
    actions: the action space and the horizon.
    spec: what the policy reads.
    camera_sizes: height and width of each camera.
    control_hz: steps per second of the robot that the policy was trained on;
      None where its data do not say.
    checkpoint: its name, step, hashes, and how it is asked.
  """
  sizes = {camera: list(camera_sizes[camera]) for camera in spec.present}
  wrists = [camera for camera in spec.present if "wrist" in camera]
  same = len({tuple(size) for size in sizes.values()}) == 1
  return {
    # RoboArena's PolicyServerConfig.
    "image_resolution": next(iter(sizes.values())) if same else None,
    "needs_wrist_camera": bool(wrists),
    "n_external_cameras": len(sizes) - len(wrists),
    "needs_stereo_camera": False,
    "needs_session_id": False,
    "action_space": actions.space.name,
    # openpi's.
    "action_dim": len(actions.space),
    "action_horizon": actions.horizon,
    # Ours.
    **_action_fields(actions.space),
    "control_hz": control_hz,
    "cameras": sizes,
    "history": spec.history,
    **_state_fields(spec.state),
    "observation_keys": {
      **{camera: image_key(camera) for camera in sizes},
      **({"state": STATE_KEY} if spec.state else {}),
      "instruction": INSTRUCTION_KEY,
    },
    **checkpoint,
  }


def _action_fields(space: ActionSpace) -> dict[str, Any]:
  bounds = [_bounds(d) for d in space.dimensions]
  return {
    "action_names": list(space.names),
    "action_units": _units(space),
    "action_low": [low for low, _ in bounds],
    "action_high": [high for _, high in bounds],
    "action_values": [list(d.values) for d in space.dimensions],
    "action_frame": space.frame,
  }


def _state_fields(space: ActionSpace | None) -> dict[str, Any]:
  bounds = [_bounds(d) for d in space.dimensions] if space else []
  return {
    "state_names": list(space.names) if space else [],
    "state_units": _units(space) if space else [],
    "state_low": [low for low, _ in bounds],
    "state_high": [high for _, high in bounds],
  }


def _units(space: ActionSpace) -> list[str]:
  return [d.unit for d in space.dimensions]


def _bounds(d: Dimension) -> tuple[float, float]:
  return (min(d.values), max(d.values)) if d.values else (d.low, d.high)


def check_claims(claims: Any, metadata: Mapping[str, Any]) -> None:
  """Compares what a client expects with what is served.

  Args:
    claims: fields of the metadata, with the client's values.
    metadata: of the service.

  Raises:
    UserError: an unknown field, or another value; names it.
  """
  if not isinstance(claims, Mapping):
    raise UserError(
      f"got expects of type {type(claims).__name__}, expected fields of the "
      "service's metadata with their values"
    )
  for name, claimed in _plain(claims).items():
    if name not in metadata:
      raise unknown_name("a field that a client expects", str(name), metadata)
    if claimed != metadata[name]:
      raise UserError(
        f"got a client that expects {name} {claimed!r:.{_SHOWN}}, and this "
        f"policy has {metadata[name]!r:.{_SHOWN}}: correct the client, or "
        "start another policy; nothing is converted here"
      )


def _plain(value: Any) -> Any:
  """Writes arrays as lists, so that they compare with JSON values."""
  if isinstance(value, np.ndarray | np.generic):
    if value.size > _CLAIMED:
      raise UserError(
        f"got an array of {value.size} numbers in expects, expected at most "
        f"{_CLAIMED}"
      )
    return value.tolist()
  if isinstance(value, Mapping):
    return {key: _plain(each) for key, each in value.items()}
  if isinstance(value, list):
    return [_plain(each) for each in value]
  return value

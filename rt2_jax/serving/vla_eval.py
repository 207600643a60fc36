"""vla-eval's protocol, by its own server classes: benchmarks of simulators.

The package's `serve_async` listens on a port of its own; each observation goes
to the same batcher as everybody's. A benchmark has actions in its own units:
the row of `CONVENTIONS` that the operator names says which, and its `DimSpec`s
are compared with the benchmark's by vla-eval itself.

Shapes: H actions of a chunk, D dimensions of the policy, 7 of a benchmark.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from vla_eval import specs
from vla_eval.model_servers.base import ModelServer, SessionContext
from vla_eval.model_servers.serve import serve_async

from rt2_jax.action_spaces import RT2
from rt2_jax.actions import ActionSpace
from rt2_jax.errors import UserError, unknown_name
from rt2_jax.observation import PRIMARY
from rt2_jax.serving.batcher import Session
from rt2_jax.serving.service import Service


@dataclasses.dataclass(frozen=True)
class Convention:
  """How a benchmark of vla-eval writes observations and actions.

  Attributes:
    cameras: the benchmark's name of each of the policy's cameras.
    metres: of one unit of translation.
    radians: of one unit of rotation.
    action: what vla-eval compares with the benchmark's own.
    state: likewise, of the robot's state.
    parameters: that a benchmark needs to show what a policy reads: for a
      camera's name or "state", the benchmark's option.
  """

  cameras: Mapping[str, str]
  metres: float
  radians: float
  action: Mapping[str, specs.DimSpec]
  state: specs.DimSpec
  parameters: Mapping[str, str]

  def to_benchmark(self, chunk: np.ndarray) -> np.ndarray:
    """Converts RT-2's actions, float32[H, 8], to float32[H, 7].

    `terminate` has no place there: the benchmark itself ends an episode. The
    gripper closes at +1.
    """
    motion = np.concatenate(
      [chunk[:, 1:4] / self.metres, chunk[:, 4:7] / self.radians], -1
    )
    gripper = 1.0 - 2.0 * chunk[:, 7:]
    parts = np.clip(motion, -1, 1), gripper
    return np.concatenate(parts, -1, dtype=np.float32)


CONVENTIONS = {
  # The controller's largest step is 5 cm and 0.5 rad.
  "libero": Convention(
    cameras={PRIMARY: "agentview", "wrist": "wrist"},
    metres=0.05,
    radians=0.5,
    action={
      "position": specs.POSITION_DELTA,
      "rotation": specs.ROTATION_AA,
      "gripper": specs.GRIPPER_CLOSE_POS,
    },
    state=specs.STATE_EEF_POS_AA_GRIP,
    parameters={"wrist": "send_wrist_image", "state": "send_state"},
  ),
}


class BenchmarkServer(ModelServer):
  """Answers vla-eval's harness; one action for each observation."""

  def __init__(self, service: Service, space: ActionSpace, name: str):
    """Compares the policy with a benchmark's convention.

    Raises:
      UserError: an unknown convention, other actions than RT-2's, or a camera
        that the benchmark does not have.
    """
    if name not in CONVENTIONS:
      raise unknown_name("a convention of vla-eval", name, CONVENTIONS)
    self._convention = CONVENTIONS[name]
    self._service = service
    self._sessions: dict[str, Session] = {}
    self._chunks: dict[str, collections.deque[np.ndarray]] = {}
    if space.names != RT2.names:
      raise UserError(
        f"got a policy that acts with {space.names}, expected {RT2.names}: "
        f"the convention {name!r} is of those"
      )
    other = set(service.reader.camera_sizes) - set(self._convention.cameras)
    if other:
      raise UserError(
        f"got a policy of the cameras {sorted(other)}, expected some of "
        f"{sorted(self._convention.cameras)}, which {name!r} has"
      )

  @property
  def max_pixels(self) -> int:
    """Pixels of the largest camera."""
    return max(h * w for h, w in self._service.reader.camera_sizes.values())

  async def on_episode_start(self, config: dict, ctx: SessionContext) -> None:
    """Forgets the last episode."""
    self._sessions[ctx.session_id] = self._service.open_session()
    self._chunks.pop(ctx.session_id, None)

  async def on_episode_end(self, result: dict, ctx: SessionContext) -> None:
    """Forgets the robot."""
    self._sessions.pop(ctx.session_id, None)
    self._chunks.pop(ctx.session_id, None)

  async def on_observation(self, obs: Any, ctx: SessionContext) -> None:
    """Sends the next action of a chunk, and asks for a new one at its end."""
    if ctx.session_id not in self._sessions:
      raise UserError("got an observation before the start of an episode")
    session, question = self._sessions[ctx.session_id], self._question(obs)
    with self._service.answering():
      if self._chunks.get(ctx.session_id):
        await self._service.remember(session, *question)
      else:
        answer = await self._service.act(session, "vla-eval", *question)
        chunk = self._convention.to_benchmark(answer.actions)
        self._chunks[ctx.session_id] = collections.deque(chunk)
      action = self._chunks[ctx.session_id].popleft()
      await ctx.send_action({"actions": action})

  def _question(self, obs: Any) -> tuple[Mapping[str, Any], Any, Any]:
    """Returns pictures, instruction and state, as `Service.act` takes them."""
    shown = obs.get("images") if isinstance(obs, Mapping) else None
    if not isinstance(shown, Mapping):
      raise UserError("got an observation without images by their cameras")
    reader = self._service.reader
    names = {c: self._convention.cameras[c] for c in reader.camera_sizes}
    pictures = {c: shown[name] for c, name in names.items() if name in shown}
    state = obs.get("states") if reader.spec.state else None
    return pictures, obs.get("task_description"), state

  def get_action_spec(self) -> dict[str, specs.DimSpec]:
    """Says what an action is."""
    return dict(self._convention.action)

  def get_observation_spec(self) -> dict[str, specs.DimSpec]:
    """Says what the policy reads."""
    reader = self._service.reader
    cameras = (self._convention.cameras[c] for c in reader.camera_sizes)
    found = {name: specs.IMAGE_RGB for name in cameras}
    if reader.spec.state:
      found["state"] = self._convention.state
    return found | {"language": specs.LANGUAGE}

  def get_observation_params(self) -> dict[str, Any]:
    """Asks the benchmark to send what the policy reads."""
    reader = self._service.reader
    read = [*reader.camera_sizes, *(["state"] if reader.spec.state else [])]
    options = self._convention.parameters
    return {options[name]: True for name in read if name in options}


async def listen(server: BenchmarkServer, host: str, port: int) -> None:
  """Serves vla-eval until it is cancelled.

  The package decodes images itself, before anything here sees them: Pillow
  refuses those of more than twice a camera's pixels.
  """
  Image.MAX_IMAGE_PIXELS = server.max_pixels
  await serve_async(server, host, port)

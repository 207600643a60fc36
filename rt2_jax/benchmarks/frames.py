"""Makes what robots show while a policy is measured: image files, in order.

They are steps that a robot recorded, or noise where there are no data. The
robots of a call stand at different places of the same recording, and go on by
one step from call to call.

Shapes: T frames of a camera, H x W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from rt2_jax import images
from rt2_jax.benchmarks import synthetic
from rt2_jax.input_pipeline import examples
from rt2_jax.input_pipeline.sources import SourceConfig
from rt2_jax.observation import Observation, ObservationSpec
from rt2_jax.policy import Policy

NUM_STEPS = 512  # that are shown again and again


class Shown(NamedTuple):
  """What a robot shows at one moment.

  Attributes:
    files: T encoded images of each camera, oldest first.
    instruction: what to do.
    state: float32[S]; None where the policy reads none.
  """

  files: Mapping[str, Sequence[bytes]]
  instruction: str
  state: np.ndarray | None

  def decode(self) -> Observation:
    """Decodes the images."""
    frames = {
      camera: np.stack([images.decode(data) for data in files])
      for camera, files in self.files.items()
    }
    return Observation(frames, self.instruction, self.state)


def recorded(source: SourceConfig, policy: Policy) -> list[Shown]:
  """Reads the first steps of a source's evaluation split.

  Raises:
    UserError: no such split, or bad data.
  """
  spec = policy.observation
  steps = examples.open_robot(
    source,
    source.eval_split,
    policy.action_tokenizer,
    policy.prompt,
    spec,
    index_folder="",
    max_skipped=0,
  )
  numbers = range(min(NUM_STEPS, len(steps)))
  states = steps.source.index.state
  return [
    Shown(
      _by_camera(steps.storage.read(request), spec),
      steps.source.instruction(number),
      states[number] if spec.state else None,
    )
    for number, request in zip(numbers, steps.requests(numbers), strict=True)
  ]


def noise(spec: ObservationSpec) -> list[Shown]:
  """Draws random pixels as JPEG files."""
  rng = np.random.default_rng(0)
  state = np.zeros(len(spec.state), np.float32) if spec.state else None
  count = len(spec.present) * spec.history
  return [
    Shown(
      _by_camera([_jpeg(rng) for _ in range(count)], spec),
      synthetic.INSTRUCTION,
      state,
    )
    for _ in range(8)
  ]


def robots_at(shown: Sequence[Shown], robots: int, step: int) -> list[Shown]:
  """Chooses what so many robots show at a step."""
  apart = len(shown) // robots
  return [shown[(i * apart + step) % len(shown)] for i in range(robots)]


def _by_camera(
  files: Sequence[bytes], spec: ObservationSpec
) -> dict[str, Sequence[bytes]]:
  """Groups files, which come camera by camera."""
  per_camera = spec.history
  return {
    camera: files[i * per_camera : (i + 1) * per_camera]
    for i, camera in enumerate(spec.present)
  }


def _jpeg(rng: np.random.Generator) -> bytes:
  pixels = rng.integers(0, 256, (*synthetic.CAMERA, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG")
  return file.getvalue()

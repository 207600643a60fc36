"""Frames of a video at given times, by PyAV: H.264, AV1 and others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from rt2_jax.errors import UserError

_SLACK = 1.0  # seconds before the first frame that a seek begins


def frames_at(
  path: Path, times: np.ndarray, rate_hz: float
) -> Iterator[np.ndarray]:
  """Yields the frame that is shown at each time, uint8[H, W, 3].

  Args:
    path: of the video.
    times: float64[T], ascending, in the video's own seconds.
    rate_hz: frames per second; a frame may lie half a frame from its time.

  Raises:
    UserError: no such file, damaged, or without a frame for one of the times.
  """
  tolerance = 0.5 / rate_hz
  before: tuple[float, av.VideoFrame] | None = None
  wanted = iter(times)
  time = next(wanted, None)
  with contextlib.closing(_decode(path, times[0])) as decoded:
    for at, frame in decoded:
      while time is not None and at >= time:
        yield _nearest(path, time, [(at, frame), before], tolerance)
        time = next(wanted, None)
      before = at, frame
      if time is None:
        return
  while time is not None:
    yield _nearest(path, time, [before], tolerance)
    time = next(wanted, None)


def time_span(path: Path) -> tuple[float, float]:
  """Seconds of the first and of the last frame, from the file's packets.

  Raises:
    UserError: no such file, or a damaged one.
  """
  with _opened(path) as container:
    stream = container.streams.video[0]
    times = [p.pts for p in container.demux(stream) if p.pts is not None]
    if not times:
      raise UserError(f"{path}: got a video without a frame; record it again")
    base = float(stream.time_base)
    return min(times) * base, max(times) * base


def _decode(path: Path, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
  """Yields frames with their times, from shortly before `start`."""
  with _opened(path) as container:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # importers have many processes
    if start > _SLACK:
      container.seek(int((start - _SLACK) / stream.time_base), stream=stream)
    for frame in container.decode(stream):
      if frame.pts is not None:
        yield float(frame.pts * stream.time_base), frame


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
  """Opens a video; errors while it is open are a UserError with its name."""
  if not path.is_file():
    raise UserError(f"got no video {path}; copy it again")
  try:
    with av.open(str(path)) as container:
      if not container.streams.video:
        raise UserError(f"{path}: got a file without a video; check its name")
      yield container
  except (av.FFmpegError, OSError) as error:
    raise UserError(
      f"{path}: got a video that does not read ({error}); copy it again"
    ) from error


def _nearest(
  path: Path,
  time: float,
  candidates: list[tuple[float, av.VideoFrame] | None],
  tolerance: float,
) -> np.ndarray:
  found = [(abs(c[0] - time), *c) for c in candidates if c]
  distance, at, frame = min(found, key=lambda c: c[0], default=(None,) * 3)
  if distance is None or distance > tolerance + 1e-6:
    last = "it has none" if at is None else f"the nearest is at {at:.3f} s"
    raise UserError(
      f"{path}: got no frame at {time:.3f} s, {last}; the video is shorter "
      "than the numbers beside it, or has gaps"
    )
  return frame.to_ndarray(format="rgb24")

"""Pictures of held-out steps: what a robot saw, did, and would have done.

Shapes: b steps of one call, F images, H actions of a chunk, D dimensions.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator

import numpy as np

from rt2_jax.actions import ActionSpace
from rt2_jax.observation import Batched

# Told apart by most colour-blind readers too (Okabe and Ito).
_RECORDED, _PREDICTED = "#0072b2", "#d55e00"
_INCHES, _DPI = (9.0, 3.2), 72
_LETTERS = 100  # of a line


@dataclasses.dataclass(frozen=True)
class Panel:
  """One held-out step.

  Attributes:
    images: uint8[h, w, 3] each, without padding.
    instruction: of the step.
    space: what the numbers mean.
    recorded: float32[H, D] in physical units.
    predicted: float32[H, D] likewise.
  """

  images: tuple[np.ndarray, ...]
  instruction: str
  space: ActionSpace
  recorded: np.ndarray
  predicted: np.ndarray

  def draw(self) -> np.ndarray:
    """Draws images, and each number within its bounds, as uint8[h, w, 3].

    Of a chunk the first action is the largest mark.
    """
    # Here: half a second that only the process which draws needs.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(_INCHES, dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    title = textwrap.shorten(self.instruction, _LETTERS, placeholder=" …")
    figure.suptitle(title, fontsize=11, parse_math=False)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5))
    for axes, image in zip(
      left.subplots(1, len(self.images), squeeze=False)[0],
      self.images,
      strict=True,
    ):
      axes.imshow(image)
      axes.set_axis_off()
    self._draw_actions(right.subplots())
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

  def _draw_actions(self, axes):
    """Draws a row for each dimension, from its lowest to its highest value."""
    ends = [
      (min(d.values), max(d.values)) if d.values else (d.low, d.high)
      for d in self.space.dimensions
    ]
    low, high = np.transpose(ends)
    rows = np.arange(len(ends))
    sizes = np.linspace(40, 8, len(self.recorded))
    for actions, colour, above in (
      (self.recorded, _RECORDED, -0.18),
      (self.predicted, _PREDICTED, 0.18),
    ):
      unit = np.clip((actions - low) / (high - low), 0, 1)
      for chunk_step, size in zip(unit, sizes, strict=True):
        axes.scatter(chunk_step, rows + above, size, colour, clip_on=False)
    words = {"x": 1.03, "va": "center", "fontsize": 8, "family": "monospace"}
    for row, d in enumerate(self.space.dimensions):
      was, found = self.recorded[0, row], self.predicted[0, row]
      axes.text(y=row - 0.2, s=f"{was:+.3f}", color=_RECORDED, **words)
      told = f"{found:+.3f} {d.unit}"
      axes.text(y=row + 0.2, s=told, color=_PREDICTED, **words)
    axes.hlines(rows, 0, 1, "#cccccc", linewidth=0.8, zorder=0)
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xticks=(0, 1))
    axes.set_xticklabels(("lowest", "highest"), fontsize=8)
    axes.set_yticks(rows, self.space.names, fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("recorded", color=_RECORDED, loc="left", fontsize=9)
    axes.set_title("predicted", color=_PREDICTED, loc="right", fontsize=9)


@dataclasses.dataclass
class Chosen:
  """Keeps a few of the steps that an evaluation reads.

  Attributes:
    count: how many at most.
    every: one of so many steps is kept, from the first on.
    numbers: which steps were kept, counted as they were read.
    kept: (images, instruction) of each.
  """

  count: int
  every: int
  numbers: list[int] = dataclasses.field(default_factory=list)
  kept: list[tuple] = dataclasses.field(default_factory=list)

  def watch(
    self, steps: Iterable[tuple[Batched, np.ndarray]]
  ) -> Iterator[tuple[Batched, np.ndarray]]:
    """Passes batches of steps on."""
    first = 0
    for seen, recorded in steps:
      rows = range(-first % self.every, len(recorded), self.every)
      for row in rows[: self.count - len(self.numbers)]:
        self.numbers.append(first + row)
        self.kept.append((_images(seen, row), seen.instruction[row]))
      first += len(recorded)
      yield seen, recorded

  def panels(
    self, space: ActionSpace, recorded: np.ndarray, predicted: np.ndarray
  ) -> list[Panel]:
    """Joins the kept steps with their actions, float32[N, H, D] of all."""
    return [
      Panel(images, instruction, space, recorded[number], predicted[number])
      for number, (images, instruction) in zip(
        self.numbers, self.kept, strict=True
      )
    ]


def _images(seen: Batched, row: int) -> tuple[np.ndarray, ...]:
  """Copies a robot's images off their canvas, without a missing one."""
  return tuple(
    image[:height, :width].copy()
    for image, (height, width) in zip(
      seen.image[row], seen.image_size[row], strict=True
    )
    if height
  )

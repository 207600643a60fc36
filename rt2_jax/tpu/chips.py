"""Peaks of TPU chips, and bandwidth and latency between chips of a slice.

Sources: Google Cloud's pages on v5e, v5p and v6e (peaks, memory, links);
"How to Scale Your Model" (links per torus axis, where an axis is a ring, and
the data centre's network per chip).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_LATENCY_S = 1e-6  # per hop
# Between slices: assumed, a few switches and two hosts' network stacks.
_DCN_LATENCY_S = 1e-4


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  Attributes:
    peak_flops: bfloat16 FLOP/s.
    hbm_bytes_per_s: memory bandwidth.
    hbm_bytes: memory that a program may use, as the compiler's own message
      names it when a program is too large (libtpu 0.0.52).
    axis_bytes_per_s: both directions of one torus axis together.
    ring_every: an axis of a multiple of this many chips closes to a ring.
    clock_hz: cycles per second, peak_flops over the FLOP of one cycle (v5e: 4
      units of 128 x 128; v5p: 8 of them; v6e: 4 of 256 x 256).
    dcn_bytes_per_s: what one chip may send over the data centre's network
      (DCN): its share of the host's network cards at their nominal speed.
  """

  peak_flops: float
  hbm_bytes_per_s: float
  hbm_bytes: float
  axis_bytes_per_s: float
  ring_every: int
  clock_hz: float
  dcn_bytes_per_s: float


CHIPS: Mapping[str, Chip] = MappingProxyType(
  {
    "v5e": Chip(197e12, 819e9, 15.75 * 2**30, 90e9, 16, 1.50e9, 3.125e9),
    "v5p": Chip(459e12, 2765e9, 95.73 * 2**30, 180e9, 4, 1.75e9, 6.25e9),
    "v6e": Chip(918e12, 1640e9, 31.24 * 2**30, 180e9, 16, 1.75e9, 12.5e9),
  }
)

# Slices that can be rented: generation -> chips along each axis of its torus.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
  *("8x8x12", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
)
SLICES: Sequence[str] = tuple(
  f"{chip}:{shape}"
  for chip, shapes in (
    ("v5e", _FLAT),
    ("v6e", _FLAT),
    ("v5p", _CUBES),
  )
  for shape in shapes
)


def chip_of(topology: str) -> Chip:
  """Looks up the chip of a slice, e.g. "v5e:16x16"."""
  return CHIPS[topology.partition(":")[0]]


@dataclasses.dataclass(frozen=True)
class Torus:
  """The chips of a program and their places.

  Attributes:
    chip: what each of them is.
    coords: place on each axis of the torus, by partition id.
  """

  chip: Chip
  coords: Sequence[tuple[int, ...]]

  def ring(self, group: Sequence[int]) -> tuple[float, float]:
    """Returns bandwidth and latency of a collective around a ring.

    The bandwidths of the axes that the group spans add up. An axis that the
    group spans from end to end is a ring where its length allows it; otherwise
    data goes there and back over the same links, at half the bandwidth.

    Args:
      group: partition ids, two at least.

    Returns:
      bytes/s per chip, and seconds.
    """
    bandwidth = latency = 0.0
    for places in zip(*self.coords, strict=True):
      length = max(places) + 1
      spanned = len({places[chip] for chip in group})
      if spanned == 1:
        continue
      ring = spanned == length and length % self.chip.ring_every == 0
      bandwidth += self.chip.axis_bytes_per_s * (1.0 if ring else 0.5)
      latency += _LATENCY_S * spanned / (2 if ring else 1)
    # Chips of several slices may share their places.
    return bandwidth or self.chip.axis_bytes_per_s / 2, latency or _LATENCY_S

  @property
  def slices(self) -> int:
    """Slices of the program: chips of several of them share their places."""
    return len(self.coords) // len(set(self.coords))

  def network(self) -> tuple[float, float]:
    """Bandwidth of a chip and latency between slices, one way."""
    return self.chip.dcn_bytes_per_s, _DCN_LATENCY_S

  def hop(self) -> tuple[float, float]:
    """Returns bandwidth and latency between neighbours, one way."""
    return self.chip.axis_bytes_per_s / 2, _LATENCY_S

"""Runs the notebooks from top to bottom and compares what they show.

`make colabs` starts this file, which needs a run of `make quickstart`. Each
cell must print and draw what is committed. Cells with the tag `measured` show
times, or what training gave on this machine: their numbers and the contents of
their pictures may differ. What ran lies in runs/colabs/executed/; where a
change is wanted, copy it to colabs/.

Each notebook is a test of its own, and writes where no other one does, below
runs/colabs/: two of them may run at once (`-n 2 --dist load`).
"""

import base64
import io
import re
import resource
import time

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.colabs_test import NOTEBOOKS, code_cells
from tests.conftest import ROOT

EXECUTED = ROOT / "runs/colabs/executed"
LONGEST_S = 180  # of one core: minutes on a busy machine do not count
HANGS_S = 500  # a cell
NEAR = 0.02  # of the range of a pixel, as a mean: drivers draw edges their way
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]\d+)?")
SPACES = re.compile(r"[\s#|-]+")  # tables are as wide as their numbers


def core_seconds() -> float:
  """Seconds that programs have computed which this process started."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def printed(cell) -> str:
  """A cell's text; its numbers are left out where they are measured."""
  text = "".join(
    output.text
    if output.output_type == "stream"
    else output.get("data", {}).get("text/markdown", "")
    for output in cell.outputs
  )
  if "measured" in cell.metadata.get("tags", ()):
    text = SPACES.sub(" ", NUMBER.sub("#", text)).strip()
  return text


def drawn(cell) -> list[tuple[str, str]]:
  """What a cell shows beside text, as types and data."""
  data = [output.get("data", {}) for output in cell.outputs]
  return [
    (kind, shown[kind])
    for shown in data
    for kind in sorted(shown)
    if kind.startswith("image/")
  ]


def pixels(data: str) -> np.ndarray:
  """A picture, float[H, W, 3] in [0, 1]."""
  with Image.open(io.BytesIO(base64.b64decode(data))) as image:
    return np.asarray(image.convert("RGB")) / 255


def compare(found, committed):
  """Compares a cell that ran with the committed one."""
  assert printed(found) == printed(committed)
  pairs = list(zip(drawn(found), drawn(committed), strict=True))
  for (kind, _), (expected, _) in pairs:
    assert kind == expected
  if "measured" in found.metadata.get("tags", ()):
    return
  for (kind, data), (_, expected) in pairs:
    if kind == "image/png":
      difference = pixels(data) - pixels(expected)
      assert np.abs(difference).mean() < NEAR


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_committed(path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  # As for a reader: one device, and programs as fast as they can be.
  monkeypatch.delenv("XLA_FLAGS")
  committed = nbformat.read(path, 4)
  run = nbformat.from_dict(committed)
  folder = {"metadata": {"path": str(path.parent)}}
  client = NotebookClient(
    run, timeout=HANGS_S, resources=folder, record_timing=False
  )
  start, before = time.monotonic(), core_seconds()
  client.execute()
  seconds, computed = time.monotonic() - start, core_seconds() - before
  EXECUTED.mkdir(parents=True, exist_ok=True)
  nbformat.write(run, EXECUTED / path.name)
  print(f"{path.stem}: {seconds:.0f} s, {computed:.0f} s of one core")
  cells = zip(code_cells(run), code_cells(committed), strict=True)
  for found, expected in cells:
    compare(found, expected)
  assert computed < LONGEST_S

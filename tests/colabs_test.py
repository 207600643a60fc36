"""Notebooks: short, current, without errors, and without code of their own."""

import ast
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
LARGEST = 1_000_000  # bytes
RUN_HERE = "01_actions_as_tokens"  # the others need a run of `make quickstart`


def code_of(cell) -> str:
  """A cell's Python; lines for the shell become `pass`."""
  return re.sub(r"^( *)[!%].*$", r"\1pass", cell.source, flags=re.M)


def code_cells(notebook) -> list:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> list[str]:
  """What the cells print; what they draw depends on the graphics library."""
  return [
    "".join(out.text for out in cell.outputs if out.output_type == "stream")
    for cell in code_cells(notebook)
  ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_calls_the_library_and_shows_what_it_gives(path):
  assert path.stat().st_size < LARGEST
  notebook = nbformat.read(path, 4)
  nbformat.validate(notebook)
  install, *cells = code_cells(notebook)
  assert "%pip install" in install.source
  shown = []
  for cell in cells:
    assert cell.execution_count, f"{path.name} was not run: make colabs"
    for node in ast.walk(ast.parse(code_of(cell))):
      assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)
    for output in cell.outputs:
      assert output.output_type != "error"
      assert "Traceback" not in str(output)
      shown += list(output.get("data", {}))
  assert "image/png" in shown
  links = re.findall(r"\]\(([^):]+)\)", str(notebook.cells))
  assert all((ROOT / "colabs" / link).exists() for link in links)


def test_a_notebook_runs_and_prints_what_is_committed(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  committed = nbformat.read(ROOT / f"colabs/{RUN_HERE}.ipynb", 4)
  run = nbformat.from_dict(committed)
  before = printed(committed)
  folder = {"metadata": {"path": str(ROOT / "colabs")}}
  NotebookClient(run, timeout=180, resources=folder).execute()
  assert printed(run) == before and any(before)

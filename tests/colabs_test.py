"""Notebooks: short, run, without errors, and without code of their own.

That they still show what is committed is `make colabs`, tests/notebooks.py.
"""

import ast
import re
import shlex

import nbformat
import pytest

from configs import quickstart
from tests import commands_test
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
LARGEST = 1_000_000  # bytes
OURS = ("rt2_jax", "configs", "data", "launch")
# A line for the shell; its output may have a name.
SHELL = re.compile(r"^( *)(?:\w+ = )?[!%](.*)$", re.M)
known = commands_test.known  # a fixture: targets, and a config's fields


def test_the_quick_start_that_the_notebooks_speak_of_is_its_config():
  notebook = nbformat.read(ROOT / "colabs/03_train_in_miniature.ipynb", 4)
  text = " ".join(cell.source for cell in notebook.cells)
  steps = quickstart.get_config().num_steps
  assert f"`make quickstart` trains for {steps:,}" in text
  (minutes,) = re.findall(
    r"(\d+) minutes", (ROOT / "docs/index.md").read_text()
  )
  assert f": {minutes} minutes" in (ROOT / "docs/notebooks.md").read_text()


def code_cells(notebook) -> list:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_of(cell) -> str:
  """A cell's Python; lines for the shell become `pass`, other files nothing."""
  if cell.source.startswith("%%writefile"):
    return ""
  source = cell.source.replace("\\\n", " ")
  return SHELL.sub(r"\1pass", source)


def commands_of(cell) -> list[list[str]]:
  """The words of the programs that a cell starts."""
  source = cell.source.replace("\\\n", " ")
  lines = [line for _, line in SHELL.findall(source)]
  programs = [line for line in lines if line.startswith("python ")]
  return [shlex.split(re.split(r" \d?[|>]", line)[0]) for line in programs]


def check_names(tree: ast.Module):
  """Checks that what is imported from here is there, without importing it."""
  for node in ast.walk(tree):
    if not isinstance(node, ast.ImportFrom):
      continue
    if node.module.partition(".")[0] not in OURS:
      continue
    place = ROOT / node.module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    assert file.is_file() or place.is_dir(), f"no module {node.module}"
    text = file.read_text() if file.is_file() else ""
    for name in (alias.name for alias in node.names):
      defined = re.search(rf"^(def|class) {name}\b|^{name}\b.*=", text, re.M)
      is_module = (place / f"{name}.py").is_file()
      assert defined or is_module, f"no {name} in {node.module}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_calls_the_library_and_shows_what_it_gives(path, known):
  assert path.stat().st_size < LARGEST
  notebook = nbformat.read(path, 4)
  nbformat.validate(notebook)
  install, *cells = code_cells(notebook)
  assert "%pip install" in install.source
  shown = []
  for cell in cells:
    assert cell.execution_count, f"{path.name} was not run: make colabs"
    tree = ast.parse(code_of(cell))
    for node in ast.walk(tree):
      assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)
    check_names(tree)
    for words in commands_of(cell):
      commands_test.check(words, *known)
    for output in cell.outputs:
      assert output.output_type != "error"
      assert "Traceback" not in str(output)
      shown += list(output.get("data", {}))
  assert "image/png" in shown
  links = re.findall(r"\]\(([^):]+)\)", str(notebook.cells))
  assert all((ROOT / "colabs" / link).exists() for link in links)


def test_no_notebook_writes_where_another_one_does():
  """Two notebooks may run at once: `make colabs`."""
  owners = {}
  for path in NOTEBOOKS:
    source = "".join(c.source for c in code_cells(nbformat.read(path, 4)))
    for place in set(re.findall(r"runs/colabs/([\w.]+)", source)):
      owners.setdefault(place, []).append(path.stem)
  assert owners
  shared = {place: names for place, names in owners.items() if len(names) > 1}
  assert not shared


def test_a_name_that_is_gone_is_found():
  for gone in ("rt2_jax.policy import Polity", "rt2_jax.pol import Policy"):
    with pytest.raises(AssertionError):
      check_names(ast.parse(f"from {gone}"))

"""What setup.py installs is what is imported."""

import importlib.metadata
import re
import runpy
import sys
from pathlib import Path

import pytest
import setuptools

from tests.conftest import ROOT
from tests.layers_test import imports


@pytest.fixture(scope="module")
def requirements():
  """Names of distributions by extra; those of every install under ""."""
  with pytest.MonkeyPatch.context() as patch:
    found = {}
    patch.setattr(setuptools, "setup", lambda **fields: found.update(fields))
    runpy.run_path(str(ROOT / "setup.py"))
  wanted = {"": found["install_requires"], **found["extras_require"]}
  return {
    extra: {_plain(re.match(r"[\w.\-]+", line)[0]) for line in lines}
    for extra, lines in wanted.items()
  }


def _plain(name: str) -> str:
  return re.sub(r"[-_.]+", "-", name).lower()


def third_party(paths: list[Path]) -> dict[str, set[str]]:
  """Top-level modules that files import -> the distributions that hold them."""
  here = {"rt2_jax", "tests", "configs", "data", "launch", "__future__"}
  names = {name.split(".")[0] for path in paths for name in imports(path)}
  names -= here | set(sys.stdlib_module_names)
  known = importlib.metadata.packages_distributions()
  return {name: {_plain(d) for d in known[name]} for name in names}


def test_the_extra_test_alone_holds_what_tests_import(requirements):
  folders = ("tests", "rt2_jax", "launch", "configs", "data")
  paths = [p for f in folders for p in (ROOT / f).rglob("*.py")]
  installed = requirements[""] | requirements["test"]
  missing = {
    name
    for name, distributions in third_party(paths).items()
    if not distributions & installed
  }
  # JAX always brings it.
  assert missing <= {"jaxlib"}, missing


def test_the_extra_test_holds_the_extras_that_tests_use(requirements):
  used = ("estimate", "gcs", "import", "int8", "lint", "serve", "sim", "torch")
  for extra in used:
    assert requirements[extra] <= requirements["test"]

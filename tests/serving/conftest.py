"""Services that the tests of all protocols share."""

import pathlib
import subprocess

import pytest

from tests.conftest import ROOT
from tests.serving import served


@pytest.fixture(scope="session")
def policy(tokenizer) -> served.MarkedPolicy:
  return served.MarkedPolicy(tokenizer)


@pytest.fixture(scope="session")
def service(policy):
  """A running service that answers with marks."""
  with served.running(policy) as running:
    yield running


@pytest.fixture(scope="session")
def run(tmp_path_factory, tokenizer) -> pathlib.Path:
  """The workdir of a tiny model whose actions depend on the image."""
  return served.save_run(tmp_path_factory.mktemp("served") / "run", tokenizer)


@pytest.fixture(scope="session")
def openpi_python() -> pathlib.Path:
  """The interpreter of openpi-client, whose numpy is older than ours."""
  target = ".venv-openpi/installed"
  subprocess.run(["make", "-s", target], cwd=ROOT, check=True)
  return ROOT / ".venv-openpi/bin/python"

"""What setup.py installs is what is imported."""

import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from rt2_jax import programs
from tests.conftest import ROOT
from tests.layers_test import imports


@pytest.fixture(scope="module")
def fields():
  """What setup.py hands to setuptools."""
  with pytest.MonkeyPatch.context() as patch:
    found = {}
    patch.setattr(setuptools, "setup", lambda **fields: found.update(fields))
    patch.chdir(ROOT)
    runpy.run_path("setup.py")
  return found


@pytest.fixture(scope="module")
def requirements(fields):
  """Names of distributions by extra; those of every install under ""."""
  wanted = {"": fields["install_requires"], **fields["extras_require"]}
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


# They make what is committed, or ship a commit.
OF_A_CLONE = {
  "gpu-check",
  "gpu-plan",
  "make-picture-tokenizer",
  "make-pictures",
  "make-tokenizer",
  "pod",
}


def test_every_program_is_a_command(fields):
  scripts = fields["entry_points"]["console_scripts"]
  commands = {script.partition(" = ")[0] for script in scripts}
  programs = {
    f"rt2-{path.stem.replace('_', '-')}"
    for folder in ("launch", "data")
    for path in (ROOT / folder).glob("*.py")
    if re.search(r"^  app\.run\(main\)$", path.read_text(), re.M)
  } - {"rt2-program"}  # whose docstring shows that line
  assert commands == programs - {f"rt2-{name}" for name in OF_A_CLONE}


def test_acting_in_pytorch_needs_neither_jax_nor_tensorflow(requirements):
  installed = requirements[""] | requirements["torch"]
  heavy = {"jax", "flax", "orbax-checkpoint", "tensorflow", "tensorflow-cpu"}
  assert not heavy & installed
  folders = ("pytorch", "rollouts")
  paths = [p for f in folders for p in (ROOT / "rt2_jax" / f).glob("*.py")]
  paths += [
    ROOT / "rt2_jax" / f"{name}.py"
    for name in ("images", "local_copies", "prompt", "robot_policy", "storage")
  ]
  for name, distributions in third_party(paths).items():
    assert distributions & installed or name == "peft", name


START = """
import sys
from rt2_jax import programs
sys.argv = ["/usr/bin/rt2-robot", *sys.argv[1:]]
programs.main()
"""


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--server=x", "Flag --robot must have a value"),
    # Ships, and is found from another folder.
    ("--flagfile=data/mini_concepts.flags", "command line flag 'concepts'"),
  ],
)
def test_a_command_is_its_program_in_any_folder(flag, message, tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", START, flag],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert message in done.stderr


@pytest.mark.parametrize(
  ("package", "extra"),
  [("jax", "jax"), ("orbax", "jax"), ("mujoco", "sim"), ("numpy", None)],
)
def test_a_missing_package_is_found_in_its_extra(package, extra, monkeypatch):
  lines = [
    "numpy>=2.0",
    'jax>=0.10; extra == "jax"',
    'orbax-checkpoint>=0.11; extra == "jax"',
    'jax[tpu]>=0.10; extra == "tpu"',
    'mujoco<5,>=4.0; extra == "sim"',
  ]
  monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
  assert programs.extra_of(package) == extra

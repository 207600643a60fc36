"""The hash of a function follows what it computes, and nothing else."""

import functools
import importlib
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from rt2_jax.input_pipeline.code_hash import code_hash
from tests.conftest import ROOT

HELPERS = """
  SCALES = {"dx": 2.0, "dy": 1.0}

  def scaled(x):
    return x * SCALES["dx"]
"""
LAB = """
  from typing import NamedTuple
  import numpy as np
  from hashed_lab import helpers
  from hashed_lab.helpers import scaled

  UNIT = 0.001
  OFFSETS = np.array([1.0, 2.0])
  KNOWN = frozenset({"m", "cm", "mm"})

  class Arm:
    reach = 1.5

    def flip(self, x):
      return -x

    @property
    def half(self):
      return self.reach / 2

  class Limits(NamedTuple):
    low: float = 0.0

    def high(self):
      return self.low + 3

  class Grip:
    __slots__ = ("sign",)

    def __init__(self, sign):
      self.sign = sign

  LIMITS = Limits()
  GRIP = Grip(1)

  def standardize(episode, order=(0, 1)):
    from hashed_lab.late import SHIFT
    def tail(x):
      from . import later
      import hashed_late_file as late
      return later.SHIFT + late.SHIFT + LIMITS.high() + GRIP.sign
    parts = [part for part in episode if part in {"m", "mm"} | KNOWN]
    return Arm().flip(scaled(parts) + UNIT * OFFSETS) + helpers.SCALES["dy"]

  def other(x):
    return x + 1
"""


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
  """Writes the package `hashed_lab`, changed as asked; hashes its function."""
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits within a second
  folder = tmp_path / "hashed_lab"
  folder.mkdir()
  (folder / "__init__.py").touch()

  def load(old="", new=""):
    for name in [n for n in sys.modules if n.startswith("hashed_la")]:
      del sys.modules[name]
    files = {"helpers": HELPERS, "data": LAB, "late": "SHIFT = 5"}
    files |= {"later": "SHIFT = 7", "../hashed_late_file": "SHIFT = 9"}
    for name, text in files.items():
      text = textwrap.dedent(text).replace(old, new) if old else text
      (folder / f"{name}.py").write_text(textwrap.dedent(text))
    importlib.invalidate_caches()
    return code_hash(importlib.import_module("hashed_lab.data").standardize)

  yield load
  for name in [n for n in sys.modules if n.startswith("hashed_la")]:
    del sys.modules[name]


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("UNIT = 0.001", "UNIT = 0.01"),
    ("SHIFT = 5", "SHIFT = 6"),  # imported when the function runs
    ("SHIFT = 7", "SHIFT = 8"),  # the same, a module of the package
    ("SHIFT = 9", "SHIFT = 0"),  # the same, a file beside it
    ("low + 3", "low + 4"),  # a method of a tuple
    ("Grip(1)", "Grip(-1)"),  # a slot
    ("[1.0, 2.0]", "[1.0, 2.5]"),
    ("return -x", "return x"),  # a method
    ("reach / 2", "reach / 3"),  # a property
    ("reach = 1.5", "reach = 1.0"),  # an attribute
    ('"cm", ', ""),  # an element of a set
    ("(0, 1)", "(1, 0)"),  # a default
    ("x * SCALES", "x / SCALES"),  # another module's function
    ('"dx": 2.0', '"dx": 2.5'),  # its constant
    ('"dy": 1.0', '"dy": 1.5'),  # one that is found through the module
    ('{"m", "mm"}', '{"m", "km"}'),
    ("+ UNIT", "- UNIT"),
  ],
)
def test_what_changes_the_result_changes_the_hash(hash_of, old, new):
  before = hash_of()
  assert hash_of(old, new) != before
  assert hash_of() == before


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ("UNIT = 0.001", "# metres\n\nUNIT = 0.001"),
    ("x + 1", "x + 2"),  # a function that is not called
    ("    parts = [", "    # Known units only.\n    parts = ["),
  ],
)
def test_what_changes_no_result_keeps_the_hash(hash_of, old, new):
  assert hash_of(old, new) == hash_of()


def flip(sign):
  return lambda x: sign * x


class Scale:
  def __init__(self, factor):
    self.factor = factor

  def __call__(self, x):
    return self.factor * x


def test_functions_made_by_functions_are_told_apart():
  made = [flip(1), flip(-1), flip(np.array([1, 2])), flip(np.array([1, 3]))]
  made += [functools.partial(np.add, 1), functools.partial(np.add, 2)]
  made += [Scale(1.0), Scale(2.0), Scale(2.0).__call__, flip]
  assert len({code_hash(function) for function in made}) == len(made)
  assert code_hash(flip(-1)) == code_hash(flip(-1))
  assert code_hash(Scale(2.0)) == code_hash(Scale(2.0))


def test_every_process_computes_the_same_hash():
  """Sets are hashed in another order, and everything lies elsewhere."""
  program = (
    "from rt2_jax.input_pipeline import datasets, rlds\n"
    "from rt2_jax.input_pipeline.code_hash import code_hash\n"
    "print([code_hash(d.standardize) for d in datasets.DATASETS.values()],"
    " code_hash(rlds.index_episodes))"
  )
  printed = {
    subprocess.run(
      [sys.executable, "-c", program],
      cwd=ROOT,
      env={**os.environ, "PYTHONHASHSEED": seed},
      capture_output=True,
      check=True,
      text=True,
    ).stdout
    for seed in ("1", "2")
  }
  assert len(printed) == 1 and len(printed.pop()) > 100

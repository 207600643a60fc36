"""launch/program.py: the head of every program."""

import subprocess
import sys

import absl.logging
import pytest
from absl import app

from launch import program
from rt2_jax.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def verbosity():
  before = absl.logging.get_verbosity()
  yield
  absl.logging.set_verbosity(before)


def test_the_functions_parameters_are_the_arguments():
  got = []
  program.main(lambda *names: got.append(names))(["x.py", "a", "b"])
  program.main(lambda workdir: got.append(workdir))(["x.py", "a"])
  program.main(lambda: got.append(None))(["x.py"])
  assert got == [("a", "b"), "a", None]


@pytest.mark.parametrize(
  ("function", "arguments", "expected"),
  [
    (lambda: None, ["a"], "got ['a'], expected flags only"),
    (lambda workdir: None, [], "got [], expected WORKDIR"),
    (lambda a, b: None, ["x"], "got ['x'], expected A and B"),
  ],
)
def test_other_arguments_are_refused(function, arguments, expected):
  with pytest.raises(app.UsageError) as error:
    program.main(function)(["x.py", *arguments])
  assert str(error.value) == expected


def test_a_type_error_of_the_program_itself_keeps_its_traceback():
  def broken():
    raise TypeError("a bug")

  with pytest.raises(TypeError, match="a bug"):
    program.main(broken)(["x.py"])


def test_a_users_mistake_ends_in_its_message():
  def mistaken():
    raise UserError("got 1, expected 2")

  with pytest.raises(SystemExit) as error:
    program.main(mistaken)(["x.py"])
  assert error.value.code == "got 1, expected 2"


def test_a_missing_extra_ends_in_one_message():
  with pytest.raises(SystemExit) as error, program.extra("serve"):
    raise ModuleNotFoundError("No module named 'a'", name="a.b")
  assert "no package 'a'" in error.value.code
  assert "pip install -e '.[serve]'" in error.value.code
  with pytest.raises(ModuleNotFoundError), program.extra("serve"):
    raise ModuleNotFoundError("a bug of ours", name="rt2_jax.none")


def test_a_missing_package_of_a_chosen_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  program.import_extras("json")
  with pytest.raises(SystemExit) as error:
    program.import_extras("json", "wandb")
  assert "no package 'wandb'" in error.value.code
  assert "pip install -e '.[wandb]'" in error.value.code


def test_only_programs_that_compute_import_jax():
  code = (
    "import sys; from launch import program; program.main(lambda: None)(['x']);"
    "assert 'jax' not in sys.modules;"
    "program.main_on_devices(lambda: None)(['x']); assert 'jax' in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

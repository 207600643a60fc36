"""Names of other packages' objects, and what can be wrong with them."""

import pytest

from rt2_jax import import_path
from rt2_jax.errors import UserError


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
  package = tmp_path / "my_lab_of_a_test"
  package.mkdir()
  (package / "__init__.py").write_text("")
  (package / "data.py").write_text(
    "kitchen = 7\nclass Rooms:\n  bath = 'bath'\n"
  )
  (package / "lacking.py").write_text("import no_such_package_at_all\n")
  (package / "broken.py").write_text("1 / 0\n")
  monkeypatch.syspath_prepend(tmp_path)
  return "my_lab_of_a_test"


def test_the_attribute_is_found(my_lab):
  assert import_path.load(f"{my_lab}.data:kitchen", "--x", int) == 7
  assert import_path.load(f"{my_lab}.data:Rooms.bath", "--x", str) == "bath"


@pytest.mark.parametrize(
  ("path", "parts"),
  [
    ("no_such_lab:x", ("'no_such_lab:x'", "--robot", "PYTHONPATH")),
    ("{lab}.date:kitchen", (".date' is not found", "--robot")),
    ("{lab}.data:kitchn", ("'kitchn'", "--robot", "'kitchen'")),
    ("{lab}.data:kitchen", ("type int", "--robot", "expected str")),
    ("kitchen", ("'kitchen'", "--robot", "module:attribute")),
  ],
)
def test_a_users_mistake(path, parts, my_lab):
  with pytest.raises(UserError) as error:
    import_path.load(path.format(lab=my_lab), "--robot", str)
  for part in parts:
    assert part in str(error.value)


def test_errors_inside_the_module_keep_their_traceback(my_lab):
  with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
    import_path.load(f"{my_lab}.lacking:x", "--robot")
  with pytest.raises(ZeroDivisionError):
    import_path.load(f"{my_lab}.broken:x", "--robot")


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("my_lab.sim:benchmark", True),
    ("tabletop", False),
    ("runs/mine", False),
    ("gs://bucket/run", False),
    ("C:/runs", False),
    ("configs/a.py:runs", False),
  ],
)
def test_import_paths_are_told_from_folders(name, expected):
  assert import_path.is_import_path(name) == expected

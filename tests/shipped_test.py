"""Files that ship with the package are found from any folder."""

import pytest

from launch import config_file
from rt2_jax import shipped
from rt2_jax.errors import UserError
from rt2_jax.tokenizer import Tokenizer
from tests.conftest import ROOT

TOKENIZER = "data/small_tokenizer.model"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_a_shipped_file_is_found_where_there_is_none(elsewhere, tokenizer):
  assert shipped.find(TOKENIZER) == str(ROOT / TOKENIZER)
  assert Tokenizer.from_file(TOKENIZER).sha256 == tokenizer.sha256


def test_the_finished_robot_is_found_as_a_folder(elsewhere):
  assert shipped.find("data/mini_robot") == str(ROOT / "data/mini_robot")
  (elsewhere / "data/mini_robot").mkdir(parents=True)
  assert shipped.find("data/mini_robot") == "data/mini_robot"


def test_a_persons_own_file_comes_first(elsewhere):
  (elsewhere / "data").mkdir()
  (elsewhere / TOKENIZER).write_bytes(b"mine")
  assert shipped.find(TOKENIZER) == TOKENIZER


@pytest.mark.parametrize(
  "path", ["data/none.model", "data", "/data/x", "gs://bucket/data", ""]
)
def test_another_path_stays_what_it_is(path, elsewhere):
  assert shipped.find(path) == path


def test_a_shipped_config_is_named_without_its_folder(elsewhere):
  fields = config_file.read("quickstart:here")
  assert fields == config_file.read(f"{ROOT}/configs/quickstart.py:here")
  (elsewhere / "quickstart").write_text("def get_config(): return {}")
  assert config_file.find("quickstart") == "quickstart"


@pytest.mark.parametrize(
  "config", ["rt1_debug", "rt2_paligemma_3b_one_gpu", "bridge_debug"]
)
def test_an_argument_that_a_config_does_not_take_is_named(config):
  with pytest.raises(UserError, match=f"--config={config}:x2.* expected"):
    config_file.read(f"{config}:x2")


def test_a_bug_of_a_config_keeps_its_traceback(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("def get_config(a):\n  return 'x' + len(a)\n")
  with pytest.raises(UserError, match="expected FILE:ARGUMENT"):
    config_file.read(str(file))
  with pytest.raises(TypeError, match="concatenate"):
    config_file.read(f"{file}:a")


@pytest.mark.parametrize(
  ("folder", "expected"),
  [
    (ROOT, "pip install -e '.[serve]'"),
    (shipped._IN_WHEEL, "pip install 'rt2-jax[serve]'"),
  ],
)
def test_an_extra_is_installed_as_this_package_was(
  folder, expected, monkeypatch
):
  monkeypatch.setattr(shipped, "FOLDER", folder)
  assert shipped.install_command("serve") == expected

"""What is shipped is what is committed."""

import os

import pytest

from rt2_jax.clusters.code import check_name, check_paths, committed
from rt2_jax.errors import UserError
from tests.clusters.conftest import git


def test_the_commit_is_unpacked_and_nothing_else(repository, tmp_path):
  (repository / ".gitignore").write_text("runs/\n")
  git(repository, "add", ".")
  git(repository, "commit", "-qm", "two")
  (repository / "runs").mkdir()
  (repository / "runs/big").write_text("ignored")
  code, warning = committed(repository, allow_dirty=False)
  assert warning == "" and len(code.commit) == 40
  folder = tmp_path / "code"
  folder.mkdir()
  (folder / "old.py").write_text("")
  code.unpack(folder)
  assert {p.name for p in folder.iterdir()} == {".gitignore", "train.py"}
  assert [p.name for p in tmp_path.iterdir() if "tar" in p.name] == []


def test_uncommitted_files_are_refused_by_name_or_left_out(
  repository, tmp_path
):
  (repository / "train.py").write_text("changed")
  (repository / "new.py").write_text("")
  with pytest.raises(
    UserError, match=r"got 2 uncommitted files \(M train.py, \?\? new.py\)"
  ):
    committed(repository, allow_dirty=False)
  code, warning = committed(repository, allow_dirty=True)
  assert warning.startswith("2 uncommitted files (M train.py, ?? new.py) are")
  code.unpack(tmp_path / "code")
  assert (tmp_path / "code/train.py").read_text() != "changed"


def test_a_folder_without_a_commit_is_refused(tmp_path):
  with pytest.raises(UserError, match="not a git repository.*, expected a"):
    committed(tmp_path, allow_dirty=False)
  git(tmp_path, "init", "--quiet")
  with pytest.raises(UserError, match="from git in .* expected a repository"):
    committed(tmp_path, allow_dirty=False)


def test_relative_paths_that_only_this_folder_has_are_refused(
  repository, tmp_path
):
  code, _ = committed(repository, allow_dirty=False)
  (repository / "data").mkdir()
  (repository / "data/x").write_text("")
  (tmp_path / "beside").mkdir()
  beside = os.path.relpath(tmp_path / "beside", repository)
  fine = ["--config=train.py", "--config.seed=3", "--a=gs://data/x", "--b"]
  check_paths([*fine, f"--c={repository}/data/x"], code, repository)
  (tmp_path / "data").mkdir()
  for argument, place in (
    ("--config=train.py:data/x", repository),
    ("--config.sources.x.path=data", repository),
    ("--config=train.py:../data", tmp_path),
    ("--config.sources.x.path=data/../../data", tmp_path),
  ):
    with pytest.raises(UserError, match=f"'{place}/data.*', or commit"):
      check_paths([*fine, argument], code, repository)
  with pytest.raises(UserError, match=f"'{tmp_path}/beside', or commit"):
    check_paths([f"--config.sources.x.path={beside}"], code, repository)


@pytest.mark.parametrize(
  "name", ["", "My-run", "3b", "a_b", "a-", "a" * 41, "a b", "run\n"]
)
def test_names_that_no_cluster_takes(name):
  assert check_name("rt2-paligemma-3b") == "rt2-paligemma-3b"
  with pytest.raises(UserError, match="expected at most 40 lower-case"):
    check_name(name)

"""Where programs write: paths that are refused, files that are whole."""

import errno
import os
import pathlib
import resource
import signal

import pytest

from data import make_rt1_episodes, make_tabletop, make_web_records
from rt2_jax import local_files
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline import kept_index


@pytest.mark.parametrize(
  "path",
  [
    "gs://bucket/run",
    "s3://bucket/run",
    "hdfs://host:9000/run",
    "file:///tmp/run",
    "memory://run",
    "GS://bucket/run",
    pathlib.Path("gs://bucket/run"),  # has one slash only
    "$NOT_SET_ANYWHERE/run",
    "${NOT_SET_ANYWHERE}/run",
    "~no_such_user/run",
    "",
    " ",
    "a\0b",
  ],
)
def test_a_path_elsewhere_is_refused(path):
  with pytest.raises(UserError, match="got --workdir = "):
    local_files.local_path(path, "--workdir")


@pytest.mark.parametrize(
  "write",
  [
    lambda path: make_web_records.make([], path, "x", "train", 1, 64),
    lambda path: make_tabletop.make(path, 1),
    lambda path: make_rt1_episodes.make(path, 1, 1, 0),
    lambda path: kept_index.KeptIndexes(path, None, ["x"]),
    lambda path: Checkpoints(path),
    lambda path: Checkpoints.open_run(path),
  ],
)
def test_whoever_writes_refuses_it(write, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in ("gs://bucket/x", "file:///tmp/x", "$NOT_SET_ANYWHERE/x"):
    with pytest.raises(UserError, match="expected a "):
      write(path)
  assert not list(tmp_path.iterdir())


def test_home_and_variables_are_expanded(monkeypatch):
  monkeypatch.setenv("HOME", "/home/someone")
  monkeypatch.setenv("RUNS", "/data/runs")
  for text, path in (
    ("~/x", "/home/someone/x"),
    ("~", "/home/someone"),
    ("$RUNS/x", "/data/runs/x"),
    ("${RUNS}/a b", "/data/runs/a b"),
    ("/plain/x:y", "/plain/x:y"),
    ("a:b/c", "a:b/c"),
    ("relative", "relative"),
  ):
    assert local_files.local_path(text, "x") == pathlib.Path(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  local_files.write(path, "old")

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  for call in ("fsync", "replace"):
    with monkeypatch.context() as patch:
      patch.setattr(os, call, full)
      with pytest.raises(UserError, match=r"config\.json'.* No space left"):
        local_files.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
  local_files.write(path, b"new")
  assert path.read_bytes() == b"new"


def test_a_limit_of_the_system_leaves_the_old_file(tmp_path):
  """As a full disk does, without one."""
  path = tmp_path / "results.json"
  local_files.write(path, "old")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(UserError, match=r"results\.json'.*File too large"):
      local_files.write(path, "x" * 5000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_below_a_file_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  for folder in (tmp_path / "file", tmp_path / "file" / "x"):
    with pytest.raises(UserError, match=f"got --output = '{folder}', which "):
      local_files.output_folder(folder, "--output")

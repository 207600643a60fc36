"""Paths of every kind; files that are whole."""

import concurrent.futures
import errno
import os
import pathlib
import pickle
import resource
import signal
import sys
import time
import uuid

import numpy as np
import pytest
import safetensors.numpy

from rt2_jax import local_copies, storage
from rt2_jax.byte_ranges import Request, open_storage
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.errors import UserError
from rt2_jax.input_pipeline.sources import SourceConfig, open_source
from rt2_jax.tokenizer import Tokenizer
from rt2_jax.weights import files, pretrained


@pytest.mark.parametrize(
  "path",
  [
    "nope://bucket/run",
    "gs://",
    "$NOT_SET_ANYWHERE/run",
    "${NOT_SET_ANYWHERE}/run",
    "gs://$NOT_SET_ANYWHERE/run",
    "~no_such_user/run",
    "",
    " ",
    "a\0b",
  ],
)
def test_a_path_that_means_nothing_is_refused(path):
  with pytest.raises(UserError, match="got (--workdir = |a path that begins)"):
    storage.locate(path, "--workdir")


def test_a_missing_client_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if not installed
  known = sys.modules["fsspec.registry"]._registry
  monkeypatch.delitem(known, "gs", raising=False)
  storage._client.cache_clear()
  message = "begins with gs://.*`pip install gcsfs`"
  with pytest.raises(UserError, match=message):
    storage.locate("gs://bucket/run", "--workdir")
  config = SourceConfig("bridge_dataset", "gs://bucket/data/1.0.0")
  with pytest.raises(UserError, match=message):
    open_source(config, "train")


def test_urls_keep_their_slashes():
  url = storage.locate("memory://bucket/a/b.json", "x")
  for same in (
    storage.locate(pathlib.Path("memory://bucket/a/b.json"), "x"),
    storage.locate("MEMORY://bucket//a/b.json", "x"),
    storage.locate("memory://bucket", "x") / "a" / "b.json",
    url.with_name("b.json"),
    pickle.loads(pickle.dumps(url)),
  ):
    assert same == url and str(same) == "memory://bucket/a/b.json"
  assert (
    os.fspath(url.parent) == f"{url.absolute().parent}" == ("memory://bucket/a")
  )
  assert (url.name, url.stem, url.suffix) == ("b.json", "b", ".json")
  assert storage.locate("file:///tmp/x", "x") == pathlib.Path("/tmp/x")
  assert storage.is_url(url) and not storage.is_url("/a:b/c")
  assert not storage.is_url("file:///tmp/x")


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
  """A folder that holds nothing."""
  if request.param == "local":
    return tmp_path / "folder"
  return storage.locate(f"memory://{uuid.uuid4().hex}/folder", "x")


def test_files_lie_anywhere(folder, tmp_path):
  path = storage.output_folder(folder / "a", "x") / "b.txt"
  assert not path.exists() and not path.is_file()
  with pytest.raises(FileNotFoundError):
    path.read_bytes()
  storage.write(path, "héllo")
  assert path.is_file() and path.exists() and not path.is_dir()
  assert (path.read_text(encoding="utf-8"), folder.is_dir()) == ("héllo", True)
  assert list(folder.iterdir()) == [folder / "a"]
  assert list((folder / "a").glob("*.txt")) == [path]
  with local_copies.of(folder) as local:
    assert (local / "a/b.txt").read_text() == "héllo"
  storage.move(folder / "a", folder / "c" / "d")
  assert (folder / "c/d/b.txt").is_file() and not (folder / "a").exists()
  made = tmp_path / "made"
  made.mkdir()
  (made / "e").write_text("e")
  local_copies.publish(made, folder / "f")
  assert (folder / "f/e").read_text() == "e"
  with local_copies.made_for(folder / "g") as local:
    local.write_text("g")
  assert (folder / "g").read_text() == "g"
  storage.remove(folder / "c")
  storage.remove(folder / "c")
  (folder / "f/e").unlink()
  (folder / "f/e").unlink(missing_ok=True)
  assert not (folder / "c").exists() and not (folder / "f/e").exists()


def test_a_store_that_holds_no_checkpoints_says_so():
  for folder in ("memory://bucket/run", "file:///tmp/x/$NOT_SET_ANYWHERE"):
    with pytest.raises(UserError, match="got .*memory://bucket|NOT_SET"):
      Checkpoints(folder)


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
    assert storage.locate(text, "x") == pathlib.Path(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  storage.write(path, "old")

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  for call in ("fsync", "replace"):
    with monkeypatch.context() as patch:
      patch.setattr(os, call, full)
      with pytest.raises(UserError, match=r"config\.json'.* No space left"):
        storage.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
  storage.write(path, b"new")
  assert path.read_bytes() == b"new"


def test_a_limit_of_the_system_leaves_the_old_file(tmp_path):
  """As a full disk does, without one."""
  path = tmp_path / "results.json"
  storage.write(path, "old")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(UserError, match=r"results\.json'.*File too large"):
      storage.write(path, "x" * 5000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)
  assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_below_a_file_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  for folder in (tmp_path / "file", tmp_path / "file" / "x"):
    with pytest.raises(UserError, match=f"got --output = '{folder}', which "):
      storage.output_folder(folder, "--output")


def test_what_a_store_refuses_is_said_in_one_message(store):
  bucket, proxy = store
  path = bucket / "refused/x"
  storage.write(path, "x")
  ranges = open_storage(str(path))
  for status, message in (
    (403, r"got 'gs://tests/refused/x.* \(403\); expected the right to list"),
    (401, "expected credentials for bucket gs://tests; run `gcloud auth"),
  ):
    for use in (
      lambda: storage.write(path, "y"),
      lambda: path.read_bytes(),
      lambda: path.is_file(),
      lambda: ranges.sizes([str(path)]),
      lambda: ranges.read([Request(str(path), 0, 1)]),
      lambda: Tokenizer.from_file(str(path)),
    ):
      with proxy.refusing(status), pytest.raises(UserError, match=message):
        use()
  assert path.read_text() == "x"


def test_a_store_that_is_busy_for_a_moment_is_asked_again(store):
  bucket, proxy = store
  storage.write(bucket / "busy", "x")
  before = proxy.refused
  with proxy.refusing(503):
    waiting = concurrent.futures.ThreadPoolExecutor(1)
    read = waiting.submit((bucket / "busy").read_text)
    while proxy.refused == before:
      time.sleep(0.01)
  assert read.result() == "x"


def test_a_bucket_that_does_not_exist_is_named(store, tmp_path):
  missing = storage.locate("gs://nowhere/run", "--workdir")
  for use in (
    lambda: missing.exists(),
    lambda: missing.read_bytes(),
    lambda: storage.write(missing, "x"),
    lambda: Checkpoints.open_run(missing),
    lambda: open_source(SourceConfig("bridge_dataset", str(missing)), "train"),
    lambda: pretrained.load(str(missing / "x.npz"), None, {}),
  ):
    with pytest.raises(UserError, match="there is no bucket gs://nowhere; cre"):
      use()


def test_a_file_that_changes_while_it_is_read_is_named(folder):
  storage.output_folder(folder, "x")
  path = folder / "model.safetensors"
  storage.write(path, safetensors.numpy.save({"x": np.zeros(4, np.float32)}))
  tensor = files.open_safetensors(folder)["x"]
  np.testing.assert_array_equal(tensor.read(), np.zeros(4))
  storage.write(path, safetensors.numpy.save({"x": np.ones(4, np.float32)}))
  with pytest.raises(UserError, match="which changed while it was read"):
    tensor.read()


def test_unfinished_files_are_local_and_found_again(tmp_path):
  assert storage.unfinished_folder(tmp_path, "a").parent == tmp_path
  bucket = storage.locate("memory://bucket/x", "x")
  found = storage.unfinished_folder(bucket, "a")
  assert not storage.is_url(found)
  assert found == storage.unfinished_folder(bucket, "a")
  assert found != storage.unfinished_folder(bucket / "y", "a")


def test_what_may_not_be_read_needs_no_room(tmp_path):
  with (
    pytest.raises(UserError, match="cannot be read: denied; .* may read"),
    storage.named_in_errors(tmp_path, verb="read"),
  ):
    raise PermissionError(13, "denied", str(tmp_path))

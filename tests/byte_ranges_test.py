"""Local files and object stores behave alike; latency is hidden."""

import resource
import threading
import uuid

import fsspec
import numpy as np
import pytest

from rt2_jax.byte_ranges import (
  LocalStorage,
  ObjectStorage,
  Request,
  open_storage,
)
from rt2_jax.errors import UserError

DATA = bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8))


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
  """A folder with two files, by its path."""
  if request.param == "memory":
    folder = f"memory://{uuid.uuid4().hex}"
  else:
    folder = str(tmp_path)
  for name in ("b", "a"):
    with fsspec.open(f"{folder}/{name}", "wb") as file:
      file.write(DATA)
  return folder


def test_all_storages_read_alike(folder):
  storage = open_storage(folder)
  a, b = storage.names(folder)
  assert a.endswith("/a") and b.endswith("/b")
  assert storage.sizes([a, b]) == [len(DATA)] * 2
  assert bytes(storage.whole(b)) == DATA
  spans = [(0, 10), (3990, 10), (17, 0), (100, 2000)]
  got = storage.read([Request(a, *span) for span in spans])
  assert got == [DATA[o : o + n] for o, n in spans]


def test_a_request_past_the_end_is_refused(folder):
  storage = open_storage(folder)
  path = storage.names(folder)[0]
  with pytest.raises(ValueError, match="byte 3995: got 5 bytes, expected 10"):
    storage.read([Request(path, 3995, 10)])


def test_a_shard_that_is_gone_is_named(tmp_path):
  path = str(tmp_path / "a")
  with pytest.raises(UserError, match=f"{path}, byte 7: got No such file"):
    LocalStorage().read([Request(path, 7, 10)])


def test_a_folder_that_does_not_exist_is_empty(folder):
  assert open_storage(folder).names(f"{folder}/nowhere") == []


def test_a_scheme_without_a_client_says_what_to_install():
  with pytest.raises(
    ValueError, match="begins with nope://, whose client does"
  ):
    open_storage("nope://bucket/data")


def test_many_requests_are_in_flight_at_once(monkeypatch):
  """So that the latency of an object store is hidden."""
  storage = ObjectStorage("memory://slow")
  with fsspec.open("memory://slow/a", "wb") as file:
    file.write(DATA)
  read_now = storage._files.cat_file
  all_there = threading.Barrier(32)

  def read_late(*args, **kwargs):
    all_there.wait(timeout=60)  # for 31 other requests; breaks if they wait
    return read_now(*args, **kwargs)

  monkeypatch.setattr(storage._files, "cat_file", read_late)
  requests = [Request("memory://slow/a", i, 30) for i in range(64)]
  assert list(storage.read(requests)) == [DATA[i : i + 30] for i in range(64)]


def test_local_descriptors_are_shared_between_reads(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(DATA)
  storage = LocalStorage()
  for _ in range(3000):  # more than a process may open
    storage.read([Request(str(path), 5, 5)])
  assert len(storage._descriptors) == 1


def test_more_shards_than_a_shell_lets_be_open(tmp_path):
  files = [tmp_path / str(i) for i in range(300)]
  for path in files:
    path.write_bytes(DATA)
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
  try:
    requests = [Request(str(path), 5, 5) for path in files]
    assert LocalStorage().read(requests) == [DATA[5:10]] * 300
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)

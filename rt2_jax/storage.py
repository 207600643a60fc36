"""Where files lie: on this machine, or in an object store behind `fsspec`.

Every path of a config, a flag or a program goes through here: `gs://…`,
`s3://…`, `memory://…`, `~/…`, `$VAR/…` or a local path. An object store has no
folders and renames nothing: an object is whole or absent, so it is written in
one piece. Local files are written beside their place and renamed. A crash or a
full disk leaves the old file or none, never a part of one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import re
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

# Orbax goes through `etils`, which else prefers TensorFlow's file system.
os.environ.setdefault("EPATH_USE_TF", "false")
from etils import epath

from rt2_jax.errors import UserError

# "gs://bucket/x", and "gs:/bucket/x", which pathlib makes of it.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
_BLOCK = 2**20  # bytes of one request for a part of an object
_OF_FILES = ("read", "removed")  # these need a file that is there
# Whose errors tell of a place and not of a bug.
_CLIENTS = ("aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs")


class Url(epath.Path):
  """A path behind `fsspec`; every method raises UserError where it is refused.

  `pathlib` would make "gs:/bucket" of "gs://bucket".
  """

  def __str__(self) -> str:
    scheme, *parts = self.parts or ("",)
    return f"{scheme}//{'/'.join(parts)}"

  def __fspath__(self) -> str:
    return str(self)

  def absolute(self) -> Url:
    return self

  def resolve(self, strict: bool = False) -> Url:
    return self

  def exists(self) -> bool:
    return self._kind() is not None

  def is_dir(self) -> bool:
    return self._kind() == "directory"

  def is_file(self) -> bool:
    return self._kind() == "file"

  def _kind(self) -> str | None:
    """Tells "file" from "directory"; None where there is nothing."""
    try:
      with named_in_errors(self, verb="read"):
        return file_system(self).info(str(self))["type"]
    except FileNotFoundError:
      return None

  def iterdir(self) -> Iterator[Url]:
    files = file_system(self)
    with named_in_errors(self, verb="read"):
      found = files.ls(str(self), detail=False)
    paths = (type(self)(files.unstrip_protocol(name)) for name in found)
    return (path for path in paths if path != self)

  def glob(self, pattern: str) -> Iterator[Url]:
    files = file_system(self)
    with named_in_errors(self, verb="read"):
      found = files.glob(f"{self}/{pattern}")
    return (type(self)(files.unstrip_protocol(name)) for name in found)

  def read_bytes(self) -> bytes:
    """Raises FileNotFoundError as a local path does."""
    with named_in_errors(self, verb="read"):
      return file_system(self).cat_file(str(self))

  def read_text(self, encoding: str = "utf-8") -> str:
    return self.read_bytes().decode(encoding)

  def open(self, mode: str = "rb", **_) -> Any:
    """Opens an object for reading, block by block."""
    assert mode == "rb", mode
    return file_system(self).open(str(self), mode, block_size=_BLOCK)

  def write_bytes(self, data: bytes) -> int:
    with named_in_errors(self):
      file_system(self).pipe_file(str(self), bytes(data))
    return len(data)

  def mkdir(self, mode=None, parents: bool = False, exist_ok: bool = False):
    """Does nothing: an object store makes its folders with their objects."""

  def unlink(self, missing_ok: bool = False):
    try:
      with named_in_errors(self, verb="removed"):
        file_system(self).rm_file(str(self))
    except FileNotFoundError:
      if not missing_ok:
        raise


Path = pathlib.Path | Url


def is_url(path: str | os.PathLike) -> bool:
  """Tells a path of an object store from one of this machine."""
  match = _URL.match(os.fspath(path))
  return bool(match) and match[1].lower() != "file"


def locate(path: str | os.PathLike, name: str) -> Path:
  """Finds the place that a person's path means; expands `~` and `$VAR`.

  Args:
    path: as a person wrote it.
    name: of the flag or field that holds it, for the error.

  Raises:
    UserError: an empty path, an unknown variable or an unknown user's home, or
      a scheme whose client is not installed.
  """
  text = os.fspath(path)
  expanded = os.path.expanduser(os.path.expandvars(text))
  unknown = _VARIABLE.search(expanded)
  if unknown:
    raise UserError(
      f"got {name} = {text!r}, expected a path whose variables are set: "
      f"{unknown[0]} is not; set it, or write the path out"
    )
  if not expanded.strip() or "\0" in expanded:
    raise UserError(f"got {name} = {text!r}, expected a path")
  if expanded.startswith("~"):
    raise UserError(
      f"got {name} = {text!r}, expected the home of a user of this machine; "
      "write the path out"
    )
  url = _URL.match(expanded)
  if not url:
    return pathlib.Path(expanded)
  scheme, rest = url[1].lower(), url[2]
  if scheme == "file":
    return pathlib.Path(f"/{rest}")
  if not rest.strip("/"):
    raise UserError(
      f"got {name} = {text!r}, expected a bucket, such as {scheme}://bucket/x"
    )
  found = Url(f"{scheme}://{rest}")
  file_system(found)
  return found


def output_folder(path: str | os.PathLike, name: str) -> Path:
  """Creates a folder, with its parents; arguments as in `locate`.

  Raises:
    UserError: see `locate`; or the folder cannot be created.
  """
  folder = locate(path, name)
  with named_in_errors(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
  return folder


def unfinished_folder(output: Path, name: str) -> pathlib.Path:
  """Names where a program's unfinished files lie, to go on with: locally.

  Args:
    output: gets the finished ones. A bucket's unfinished files lie in this
      machine's folder of temporary files.
    name: of what is made.
  """
  if not isinstance(output, Url):
    return output / f".{name}.unfinished"
  place = zlib.crc32(str(output).encode())
  return pathlib.Path(tempfile.gettempdir()) / f"{name}-{place:08x}.unfinished"


def write(path: Path, content: str | bytes):
  """Writes a whole file, or leaves what was there.

  Raises:
    UserError: the folder cannot be written, or the disk is full.
  """
  data = content.encode() if isinstance(content, str) else content
  if isinstance(path, Url):
    path.write_bytes(data)
    return
  # Hosts may share the folder, and the numbers of their processes.
  unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
  with named_in_errors(path):
    try:
      with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(unfinished, path)
    except BaseException:
      with contextlib.suppress(OSError):
        unfinished.unlink()
      raise


def move(path: Path, target: Path):
  """Moves a file or a folder.

  In an object store that is a copy of every object, and no single step.
  """
  with named_in_errors(target):
    if isinstance(path, Url):
      file_system(path).mv(str(path), str(target), recursive=True)
    else:
      target.parent.mkdir(parents=True, exist_ok=True)
      path.rename(target)


def remove(path: Path):
  """Removes a file or a folder, if there is one."""
  with named_in_errors(path):
    if isinstance(path, Url):
      if path.exists():
        file_system(path).rm(str(path), recursive=True)
    elif path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def named_in_errors(
  path: str | os.PathLike, name: str = "", verb: str = "written"
) -> Iterator[None]:
  """Turns a refusal to read or write into a UserError with the path.

  Args:
    path: what is read or written.
    name: of the flag or field that holds it.
    verb: what is refused; a file to be "read" or "removed" that is not there
      raises FileNotFoundError as it is.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if verb in _OF_FILES and isinstance(error, FileNotFoundError):
      if is_url(path):
        _check_bucket(_bucket(path))
      raise
    cause = _cause(error, path, verb)
    if cause is None:
      raise
    raise UserError(
      f"got {name + ' = ' if name else ''}{str(path)!r}, which cannot be "
      f"{verb}: {cause}"
    ) from error


def _cause(error: Exception, path: str | os.PathLike, verb: str) -> str | None:
  """What a place's refusal means, and what to change; None: it is none."""
  client = type(error).__module__.partition(".")[0] in _CLIENTS
  if not isinstance(error, OSError) and not client:
    return None
  text = f"{getattr(error, 'strerror', None) or error}".strip()
  text = f"{(text or type(error).__name__).splitlines()[0]:.200}"
  if not is_url(path) and verb == "read":
    return f"{text}; expected one that this user may read; name another place"
  if not is_url(path):
    return (
      f"{text}; expected a folder with room and the right to write; free some, "
      "or choose another place"
    )
  code = getattr(error, "code", None)
  bucket = _bucket(path)
  if isinstance(error, PermissionError) or "Forbidden" in text or code == 403:
    return (
      f"{text}: permission denied (403); expected the right to list, read, "
      f"write and delete objects of bucket {bucket}, such as roles/storage."
      "objectUser; grant it to these credentials"
    )
  if code == 401 or "credentials" in text.lower() or "auth" in str(type(error)):
    return (
      f"{text}; expected credentials for bucket {bucket}; run `gcloud auth "
      "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
    )
  if isinstance(error, FileNotFoundError):
    return f"there is no bucket {bucket}; create it, or correct its name"
  return f"{text}; the store did not answer after several tries; try again"


def _bucket(path: str | os.PathLike) -> str:
  scheme, rest = _URL.match(os.fspath(path)).groups()
  return f"{scheme}://{rest.partition('/')[0]}"


@functools.cache
def _check_bucket(bucket: str):
  """Raises UserError if there is no such bucket."""
  if not bucket.startswith("memory:"):
    with named_in_errors(bucket, verb="reached"):
      file_system(bucket).ls(bucket, detail=False)


def file_system(path: str | os.PathLike) -> Any:
  """Opens the `fsspec` file system of a URL.

  Raises:
    UserError: its client is not installed.
  """
  return _client(_URL.match(os.fspath(path))[1])


@functools.cache
def _client(scheme: str) -> Any:
  import fsspec

  # Others write there too, and a listing that is kept would hide it.
  for name in {scheme, *(("gs", "gcs") if scheme in ("gs", "gcs") else ())}:
    fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
  # They log errors that we name in one message, with a traceback.
  for name in ("gcsfs", "google.auth"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  try:
    return fsspec.filesystem(scheme)
  except (ImportError, ValueError) as error:
    package = _PACKAGES.get(scheme, "CLIENT")
    raise UserError(
      f"got a path that begins with {scheme}://, whose client does not load "
      f"({error}); run `pip install {package}`, or use a local path"
    ) from error

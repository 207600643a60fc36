"""Ships exactly the committed code: what ran can be looked up by its hash."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence

from rt2_jax.errors import UserError

_SHOWN = 5  # uncommitted files that an error names
_SAFE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?\Z")


@dataclasses.dataclass(frozen=True)
class Code:
  """A commit of a repository.

  Attributes:
    repository: its folder on this machine.
    commit: full hash.
  """

  repository: pathlib.Path
  commit: str

  @property
  def short(self) -> str:
    return self.commit[:12]

  def unpack(self, folder: pathlib.Path):
    """Writes the commit's files to a folder, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder.with_name(f"{folder.name}.tar")
    self.pack(archive)
    with tarfile.open(archive) as files:
      files.extractall(folder, filter="tar")
    archive.unlink()

  def pack(self, archive: pathlib.Path):
    """Writes a .tar or .tar.gz of the commit's files."""
    _git(self.repository, "archive", f"--output={archive}", self.commit)

  def holds(self, path: str) -> bool:
    """Whether the commit has such a file or folder."""
    if pathlib.PurePath(path).parts[:1] == ("..",):
      return False  # beside the repository, where git does not look
    return bool(_git(self.repository, "ls-tree", self.commit, "--", path))


def committed(repository: pathlib.Path, allow_dirty: bool) -> tuple[Code, str]:
  """Finds the commit that HEAD names.

  Args:
    repository: a folder in it.
    allow_dirty: leave uncommitted changes behind with a warning.

  Returns:
    the code, and a warning or "".

  Raises:
    UserError: no repository or no commit; or files are not committed.
  """
  root = pathlib.Path(_git(repository, "rev-parse", "--show-toplevel").strip())
  code = Code(root, _git(root, "rev-parse", "HEAD").strip())
  changed = _git(root, "status", "--porcelain").splitlines()
  if not changed:
    return code, ""
  names = ", ".join(line.strip() for line in changed[:_SHOWN])
  more = ", …" if len(changed) > _SHOWN else ""
  got = f"{len(changed)} uncommitted files ({names}{more})"
  if allow_dirty:
    return code, f"{got} are left out: commit {code.short} runs without them"
  raise UserError(
    f"got {got}, expected none: exactly what is committed is shipped; commit "
    "or stash them, or pass --allow_dirty to run the commit without them"
  )


def check_name(name: str) -> str:
  """Returns a run's name that every cluster takes.

  Raises:
    UserError: another one. Kubernetes and Cloud TPU allow at most 40 lower-case
      letters, digits and hyphens.
  """
  if not _SAFE_NAME.fullmatch(name):
    raise UserError(
      f"got --name={name!r}, expected at most 40 lower-case letters, digits "
      "and hyphens, a letter first and no hyphen last"
    )
  return name


def check_paths(arguments: Sequence[str], code: Code, here: pathlib.Path):
  """Refuses relative paths that a run would look for in the shipped code.

  Args:
    arguments: `--flag=value` each; a value may be `config.py:argument`.
    code: what is shipped.
    here: the folder that the person stands in.

  Raises:
    UserError: a path that is here, but not in the commit.
  """
  for argument in arguments:
    value = argument.rpartition("=")[2]  # `--flag value` is two arguments
    for part in value.split(":"):
      path = here / part
      # A file that is neither in the commit nor here may be anything else.
      if part in ("", ".", "/") or path == pathlib.Path(part):
        continue
      if len(part) < 255 and path.exists() and not code.holds(part):
        raise UserError(
          f"got {argument}, whose {part!r} is in this folder but not in "
          f"commit {code.short}, from whose folder the run starts; write "
          f"{str(path.resolve())!r}, or commit it"
        )


def _git(folder: pathlib.Path, *arguments: str) -> str:
  command = ["git", "-C", str(folder), *arguments]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    said = done.stderr.strip().removeprefix("fatal: ")
    raise UserError(
      f"got {said!r} from git in {folder}, expected a repository with a "
      "commit: its committed code is what runs; clone it, or commit first"
    )
  return done.stdout

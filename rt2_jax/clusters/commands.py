"""Runs a cluster's own programs, and explains what they refuse."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence

from rt2_jax.errors import UserError

_LAST_LINES = 12


class CommandError(UserError):
  """A program of the cluster failed.

  Attributes:
    code: its exit code.
    said: all that it printed.
  """

  def __init__(self, message: str, code: int, said: str):
    super().__init__(message)
    self.code = code
    self.said = said


@dataclasses.dataclass(frozen=True)
class Commands:
  """A way to run programs.

  Attributes:
    advice: pattern in a program's error -> what to do; the first that matches.
    install: program -> where to get it.
    dry_run: print every command instead of running it.
    say: where dry runs print.
  """

  advice: Mapping[str, str]
  install: Mapping[str, str]
  dry_run: bool = False
  say: Callable[[str], None] = print

  def run(self, *command: str) -> str:
    """Returns what a program prints; "" in a dry run.

    Raises:
      UserError: no such program.
      CommandError: it failed; with its own last words and what to do.
    """
    if self.dry_run:
      self.say(shlex.join(command))
      return ""
    try:
      done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
      raise self._missing(command[0]) from None
    if done.returncode:
      said = f"{done.stdout.strip()}\n{done.stderr.strip()}".strip()
      raise self._failed(command, done.returncode, said)
    return done.stdout

  def show(self, *command: str):
    """Runs a program that takes minutes, and prints its lines as they come.

    In a dry run prints the command instead. Raises what `run` raises.
    """
    if self.dry_run:
      self.say(shlex.join(command))
      return
    try:
      process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
      )
    except FileNotFoundError:
      raise self._missing(command[0]) from None
    said = []
    with process:
      for line in process.stdout:
        self.say(line.rstrip("\n"))
        said.append(line)
    if process.returncode:
      raise self._failed(command, process.returncode, "".join(said))

  def _missing(self, program: str) -> UserError:
    return UserError(
      f"got no program {program!r} on PATH, expected it for this backend; "
      f"install it: {self.install.get(program, 'see docs/pods.md')}"
    )

  def _failed(
    self, command: Sequence[str], code: int, said: str
  ) -> CommandError:
    last = "\n".join(said.splitlines()[-_LAST_LINES:])
    return CommandError(
      f"got exit code {code} from `{_shortened(command)}`:\n{last}\n"
      f"{self.explain(said)}",
      code,
      said,
    )

  def explain(self, said: str) -> str:
    """What to do about a program's words."""
    for pattern, advice in self.advice.items():
      if re.search(pattern, said, re.IGNORECASE):
        return advice
    return "see the message above; --dry_run prints every command"


def _shortened(command: Sequence[str]) -> str:
  """The program and its sub-commands, up to the first option."""
  words = []
  for word in command:
    if word.startswith("-") and words:
      break
    words.append(word)
  return shlex.join(words)

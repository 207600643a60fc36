"""Programs of a cluster, and their errors."""

import sys

import pytest

from rt2_jax.clusters.commands import CommandError, Commands
from rt2_jax.errors import UserError

COMMANDS = Commands({"no room": "make room"}, {"gcloud": "at example.com"})


def test_errors_say_what_to_do():
  program = "import sys; sys.exit('first\\nsorry, No Room left')"
  with pytest.raises(CommandError) as caught:
    COMMANDS.run(sys.executable, "-c", program)
  message = str(caught.value)
  assert message.startswith(f"got exit code 1 from `{sys.executable}`:\nfirst")
  assert message.endswith("No Room left\nmake room")
  with pytest.raises(CommandError, match="dry_run prints every command"):
    COMMANDS.run("git", "frobnicate")


def test_a_missing_program_names_its_source(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(UserError, match=r"'gcloud' on PATH.*: at example.com$"):
    COMMANDS.run("gcloud", "compute")


def test_a_long_program_is_shown_while_it_runs():
  said = []
  commands = Commands({"no room": "make room"}, {}, say=said.append)
  commands.show("sh", "-c", "echo one; echo two >&2")
  assert said == ["one", "two"]
  with pytest.raises(CommandError, match="\nno room\nmake room"):
    commands.show("sh", "-c", "echo no room; exit 3")


def test_a_dry_run_prints_what_a_shell_would_take():
  said = []
  dry = Commands({}, {}, dry_run=True, say=said.append)
  assert dry.run("rm", "-r", "a b") == ""
  assert said == ["rm -r 'a b'"]

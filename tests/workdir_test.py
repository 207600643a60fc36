"""A run's folder: claimed late, written whole, held by one program."""

import json
import subprocess
import sys

import pytest

from rt2_jax import workdir
from rt2_jax.errors import UserError
from rt2_jax.train_config import with_defaults

FIELDS = {"seed": 0, "mesh": {"data": 1}, "optimizer": {"learning_rate": 0.1}}


def claim(folder, fields=FIELDS):
  with workdir.held(folder, fields):
    return json.loads((folder / "config.json").read_text())


def a_checkpoint(folder):
  (folder / "checkpoints/10").mkdir(parents=True)


def test_it_belongs_to_whoever_saved_a_checkpoint(tmp_path):
  claim(tmp_path)
  other = FIELDS | {"seed": 1}
  assert claim(tmp_path, other) == other  # nothing was saved yet
  a_checkpoint(tmp_path)
  with pytest.raises(UserError, match="config.seed is 0, was 1; use another"):
    claim(tmp_path, FIELDS)
  longer = other | {"mesh": {"data": 8}, "num_steps": 24}  # may change
  assert claim(tmp_path, longer) == longer


def test_a_default_may_be_spelled_out(tmp_path):
  """A config file that states less than when the run began goes on."""
  spelled = with_defaults(FIELDS | {"sources": {"x": {"dataset": "bridge"}}})
  claim(tmp_path, spelled)
  a_checkpoint(tmp_path)
  fields = FIELDS | {"sources": {"x": {"dataset": "bridge"}}}
  assert not workdir.check(tmp_path, fields)
  fields["optimizer"] = {"learning_rate": 0.1, "b2": 0.9}
  with pytest.raises(UserError, match="config.optimizer.b2 is 0.9, was 0.999"):
    workdir.check(tmp_path, fields)


def test_a_run_goes_on_with_a_release_that_has_another_filter(tmp_path):
  source = {"dataset": "bridge", "path": "data"}
  whole = with_defaults(FIELDS | {"sources": {"x": source}})
  filters = whole["sources"]["x"]["filters"]
  name = next(iter(filters))
  a_checkpoint(tmp_path)
  older = {other: filters[other] for other in filters if other != name}
  stored = FIELDS | {"sources": {"x": source | {"filters": older}}}
  (tmp_path / "config.json").write_text(json.dumps(stored))
  assert not workdir.check(tmp_path, whole)
  older |= {name: ["something"]}
  with pytest.raises(UserError, match=f"x.filters.{name} is .'something'., "):
    workdir.check(tmp_path, stored)


@pytest.mark.parametrize("content", ["", '{"seed": 0, "op'])
def test_a_config_that_a_crash_cut_off(tmp_path, content):
  (tmp_path / "config.json").write_text(content)
  assert claim(tmp_path) == FIELDS
  (tmp_path / "config.json").write_text(content)
  a_checkpoint(tmp_path)
  message = f"config.json of {len(content)} bytes, which is no JSON"
  with pytest.raises(UserError, match=message):
    claim(tmp_path)
  assert (tmp_path / "config.json").read_text() == content


def test_two_programs_cannot_train_in_one(tmp_path):
  program = (
    "import pathlib, sys; from rt2_jax import workdir\n"
    f"with workdir.held(pathlib.Path({str(tmp_path)!r}), {FIELDS!r}):\n"
    "  print('held', flush=True); sys.stdin.read()"
  )
  other = subprocess.Popen(
    [sys.executable, "-c", program],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert other.stdout.readline() == b"held\n"
  with pytest.raises(UserError, match=f"trains now .process {other.pid} on "):
    claim(tmp_path)
  other.kill()
  other.wait()
  assert claim(tmp_path) == FIELDS  # a lock ends with its process

"""What launch/serve.py serves: a run, or its export, named by their hashes."""

import subprocess
import sys

import numpy as np
import pytest

from launch import served_policy
from rt2_jax.errors import UserError
from rt2_jax.weights import export
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint
from tests.conftest import ROOT
from tests.serving import served


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("exported") / "hf"
  export.stored_to_huggingface(StoredCheckpoint.open(run), folder)
  return folder


def test_a_run_and_its_export_act_alike_and_are_told_apart(run, exported):
  ours = served_policy.open_policy(str(run), None, None)
  theirs = served_policy.open_policy(str(exported), None, None)
  for seed in range(3):
    seen = [served.observation(seed)]
    action = ours.policy.act(seen)
    np.testing.assert_array_equal(action, theirs.policy.act(seen))
  assert ours.control_hz == theirs.control_hz == 5.0  # Bridge's
  named, other = dict(ours.identity), dict(theirs.identity)
  assert named.pop("checkpoint") == "run" and other.pop("checkpoint") == "hf"
  digests = named.pop("checkpoint_sha256"), other.pop("checkpoint_sha256")
  assert len(set(digests)) == 2 and {len(d) for d in digests} == {64}
  assert named == other and named["checkpoint_step"] == 7
  assert named["prompt_length"] == 40
  assert "{instruction}" in named["prompt_template"]


def test_a_checkpoint_says_its_robots_rate(tmp_path, tokenizer):
  """As a source with a robot.json does, whose dataset has no name."""
  workdir = served.save_run(tmp_path, tokenizer, control_hz={"kitchen": 12.5})
  assert served_policy.open_policy(str(workdir), None, None).control_hz == 12.5


def test_other_weights_have_another_hash(exported):
  before = served_policy.open_policy(str(exported), None, None).identity
  file = exported / "model.safetensors"
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  after = served_policy.open_policy(str(exported), None, None).identity
  assert before["checkpoint_sha256"] != after["checkpoint_sha256"]
  assert before["statistics_sha256"] == after["statistics_sha256"]


def test_an_export_has_one_step(exported):
  with pytest.raises(UserError, match="--step=3"):
    served_policy.open_policy(str(exported), None, 3)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--host=0.0.0.0"], "without a token"),
    (["--vla_eval_port=70000"], "[1, 65535]"),
    (["--camera_sizes=wrist=8x8"], "sizes of the cameras ['wrist']"),
  ],
)
def test_flags_that_do_not_fit_are_one_message(run, flags, message):
  common = [f"--checkpoint={run}", "--port=0", "--camera_sizes=24x32"]
  done = subprocess.run(
    [sys.executable, "launch/serve.py", *common, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 1 and message in done.stderr
  assert "Traceback" not in done.stderr

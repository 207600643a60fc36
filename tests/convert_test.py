"""The programs, as a person runs them on a checkpoint of a run."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from rt2_jax import checkpoint, trees
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.errors import UserError
from rt2_jax.models.variants import VLMConfig
from rt2_jax.policy import Policy
from rt2_jax.pytorch.policy import TorchPolicy
from rt2_jax.weights import pretrained
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint, average, write
from tests import tiny_models
from tests.conftest import ROOT

# The same command, in a process that believes that it has no memory.
SMALL = (
  "from launch import convert, proof; from absl import app; "
  "proof.fits_in_memory = lambda checkpoint: False; app.run(convert.main)"
)


# Or that writes other weights than it should.
WRONG = (
  "from launch import convert; from absl import app; import jax; "
  "write = convert.export.to_huggingface; "
  "convert.export.to_huggingface = lambda params, *rest: write("
  "jax.tree.map(lambda x: x * 1.01, params), *rest); app.run(convert.main)"
)


def start(*command: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    env=os.environ | {"OMP_NUM_THREADS": "1"},
    capture_output=True,
    text=True,
  )


def run(*command: str) -> str:
  done = start(*command)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def fail(*command: str) -> str:
  done = start(*command)
  assert done.returncode != 0, done.stdout
  assert "Traceback" not in done.stderr
  return (done.stdout + done.stderr)[-2000:]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tokenizer):
  """Two steps of a run in bfloat16, computing in bfloat16."""
  workdir = tmp_path_factory.mktemp("run")
  model = tiny_models.config("gemma2", tokenizer.vocab_size)
  meta = tiny_models.meta(model, tokenizer)
  meta["model"]["img"]["dtype"] = meta["model"]["llm"]["dtype"] = "bfloat16"
  figures = ROOT / "data/stats/bridge_dataset_relabelled.json"
  meta["statistics"] = {"kitchen": json.loads(figures.read_text())}
  checkpoints = Checkpoints(workdir / "checkpoints")
  for step in 10, 20:
    params = tiny_models.params(model, "bfloat16", seed=step)
    checkpoints.save(step, params, {"mu": params}, meta, tokenizer.model)
  checkpoints.close()
  return workdir


# Runs one command after another, so that they import and compile once.
SERVER = """
import contextlib, io, json, sys, traceback
from absl import flags
from absl.testing import flagsaver
from launch import convert
for line in sys.stdin:
  out, code = io.StringIO(), ""
  with flagsaver.flagsaver(), contextlib.redirect_stdout(out):
    try:
      convert.main(flags.FLAGS(["launch/convert.py", *json.loads(line)]))
    except SystemExit as stop:
      code = str(stop.code)
    except BaseException:
      code = traceback.format_exc()
  print(json.dumps([out.getvalue(), code]), flush=True)
"""


@pytest.fixture(scope="module")
def server():
  """A process that converts."""
  with subprocess.Popen(
    [sys.executable, "-c", SERVER],
    cwd=ROOT,
    env=os.environ | {"OMP_NUM_THREADS": "1"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as process:
    yield process
    process.stdin.close()


def ask(server, *argv) -> tuple[str, str]:
  """What launch/convert.py prints, and what it ends with."""
  server.stdin.write(json.dumps([*map(str, argv)]) + "\n")
  server.stdin.flush()
  return tuple(json.loads(server.stdout.readline()))


def convert(server, *argv) -> str:
  out, code = ask(server, *argv)
  assert not code, out + code
  return out


def refuse(server, *argv) -> str:
  out, code = ask(server, *argv)
  assert code and "Traceback" not in code, out + code
  return code


def params_of(workdir, step=None) -> dict:
  return StoredCheckpoint.open(workdir, step).read_params()


def test_to_hf_and_its_proof(server, workdir, tmp_path):
  out = convert(
    server,
    "to_hf",
    "--step=10",
    *(f"--workdir={workdir}", f"--output={tmp_path}"),
  )
  assert "both sides in float32 on the same inputs\n" in out
  assert "equal action ids     4 of 4 actions" in out
  assert re.search(r"its own processor +equal ids, 3\d\d texts", out)
  assert float(re.search(r"; ([\d.]+) grey levels", out)[1]) <= 2.0
  assert re.search(r"equal answer ids     (\d+) of \1 answers", out)
  model = StoredCheckpoint.open(workdir).model
  params = params_of(workdir, 10)
  shardings = tiny_models.on_one_device(params)
  read = pretrained.load(tmp_path, model, shardings, "bfloat16")
  tiny_models.assert_identical(read, params)
  image = np.zeros((60, 80, 3), np.uint8)
  assert TorchPolicy.from_folder(tmp_path)(image, "stop").shape == (8,)


def test_a_model_too_large_is_proven_on_its_ends(workdir, tmp_path):
  command = ("to_hf", f"--workdir={workdir}", f"--output={tmp_path}")
  out = run("-c", SMALL, *command)
  assert "the first and last layers only (memory)" in out
  assert "equal action ids     4 of 4 actions" in out


def test_other_weights_fail_the_proof(workdir, tmp_path):
  command = ("to_hf", f"--workdir={workdir}", f"--output={tmp_path}")
  assert "nothing was written" in fail("-c", WRONG, *command)
  assert not list(tmp_path.iterdir())
  assert not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))


def test_from_hf_gives_the_same_checkpoint_again(server, workdir, tmp_path):
  folder, again = tmp_path / "hf", tmp_path / "again"
  convert(
    server,
    "to_hf",
    "--step=10",
    *(f"--workdir={workdir}", f"--output={folder}"),
  )
  command = (server, "from_hf", f"--folder={folder}")
  out = convert(*command, f"--output={again}")
  assert f"wrote {again}/checkpoints/10" in out
  assert "equal action ids     4 of 4 actions" in out
  before, after = (StoredCheckpoint.open(w) for w in (workdir, again))
  assert after.meta == before.meta and after.tokenizer == before.tokenizer
  assert after.step == 10 and not after.has_optimizer
  tiny_models.assert_identical(after.read_params(), params_of(workdir, 10))
  random = np.random.default_rng(0)
  images = random.integers(0, 256, (3, 60, 80, 3), np.uint8)
  texts = ["stop", "pick apple", "open drawer"]
  np.testing.assert_array_equal(
    Policy.from_checkpoint(again)(images, texts),
    Policy.from_checkpoint(workdir, step=10)(images, texts),
  )
  (folder / "preprocessor_config.json").rename(tmp_path / "aside")
  assert "whose processor transformers cannot load" in refuse(
    *command, f"--output={tmp_path}/other"
  )
  (tmp_path / "aside").rename(folder / "preprocessor_config.json")
  robot = folder / "rt2.json"
  robot.write_text(
    robot.read_text().replace(after.meta["tokenizer_sha256"], "")
  )
  assert "as rt2.json says; convert it again" in refuse(
    *command, f"--output={tmp_path}/other"
  )
  robot.unlink()
  assert f"pass --config.pretrained={folder} to launch/train.py" in refuse(
    *command, f"--output={tmp_path}/other"
  )
  assert not (tmp_path / "other").exists()


def test_to_big_vision_and_its_proof(server, workdir, tmp_path):
  path = tmp_path / "weights.npz"
  out = convert(
    server,
    "to_big_vision",
    *(f"--workdir={workdir}", f"--output={path}"),
  )
  assert "max |Δ| logits       0.0e+00" in out
  names = {name.removeprefix("params/") for name in np.load(path).files}
  assert names == set(trees.flatten(params_of(workdir)))


@pytest.fixture(scope="module")
def web(workdir, tmp_path_factory):
  """A run on web data alone, in float32."""
  stored = StoredCheckpoint.open(workdir)
  web = tmp_path_factory.mktemp("web")
  meta = stored.meta | {"action_tokenizers": {}}
  params = tiny_models.params(VLMConfig.from_dict(meta["model"]), seed=3)
  checkpoints = Checkpoints(web / "checkpoints")
  checkpoints.save(1, params, {"count": np.zeros(1)}, meta, stored.tokenizer)
  checkpoints.close()
  return web


def test_to_big_vision_in_half_the_space(server, web, tmp_path):
  """What is committed of a small model: bfloat16, compressed.

  The proof compares with the weights before they were rounded.
  """
  path = tmp_path / "weights.npz"
  path.write_text("what the new file replaces")
  out = convert(
    server,
    "to_big_vision",
    "--dtype=bfloat16",
    "--compressed",
    *(f"--workdir={web}", f"--output={path}"),
  )
  moved = float(re.search(r"logits +(\S+) ", out)[1])
  assert 0 < moved < 5
  rounding = float(re.search(r"of a weight +(\S+) of itself", out)[1])
  assert 2**-9 < rounding <= 2**-8 + 1e-5
  params = params_of(web)
  numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert path.stat().st_size < 2 * numbers


def test_a_run_on_web_data_alone_there_and_back(server, web, tmp_path):
  folder, again = tmp_path / "hf", tmp_path / "again"
  out = convert(server, "to_hf", f"--workdir={web}", f"--output={folder}")
  assert "equal action ids     0 of 0 actions" in out
  assert re.search(r"equal answer ids     ([1-9]\d*) of \1 answers", out)
  convert(server, "from_hf", f"--folder={folder}", f"--output={again}")
  tiny_models.assert_identical(params_of(again), params_of(web))
  policy = TorchPolicy.from_folder(folder)
  with pytest.raises(UserError, match="which answers questions and cannot act"):
    policy(np.zeros((60, 80, 3), np.uint8), "stop")
  used = f"--output={folder}"
  assert "which exists; choose another" in refuse(
    server, "to_hf", f"--workdir={web}", used
  )


@pytest.mark.parametrize("command", ["to_hf", "strip", "to_big_vision"])
def test_a_checkpoint_with_nan_is_refused(
  server, workdir, tmp_path, command, monkeypatch
):
  stored = StoredCheckpoint.open(workdir)
  params = stored.read_params()
  scale = np.array(params["llm"]["final_norm"]["scale"])
  scale[5] = np.nan
  params["llm"]["final_norm"]["scale"] = scale
  broken, output = tmp_path / "broken", tmp_path / "out"
  # As a release saved it that did not look at the numbers.
  monkeypatch.setattr(
    checkpoint.checksums,
    "measure",
    lambda *arguments, _measure=checkpoint.checksums.measure, **names: {
      name: array._replace(finite=True)
      for name, array in _measure(*arguments, **names).items()
    },
  )
  checkpoints = Checkpoints(broken / "checkpoints")
  checkpoints.save(1, params, None, stored.meta, stored.tokenizer)
  checkpoints.close()
  message = refuse(server, command, f"--workdir={broken}", f"--output={output}")
  assert "params llm/final_norm/scale is not finite" in message
  assert [path.name for path in tmp_path.iterdir()] == ["broken"]
  with pytest.raises(UserError, match="got nan in 'llm/final_norm/scale'"):
    write(params, stored.meta, stored.tokenizer, 1, output)


def test_strip_keeps_what_acting_needs(server, workdir, tmp_path):
  out = convert(
    server,
    "strip",
    *(f"--workdir={workdir}", f"--output={tmp_path}"),
  )
  assert "equal action ids     4 of 4 actions" in out
  tiny_models.assert_identical(params_of(tmp_path), params_of(workdir))
  assert not (tmp_path / "checkpoints/20/opt_state").exists()
  image = np.zeros((60, 80, 3), np.uint8)
  np.testing.assert_array_equal(
    Policy.from_checkpoint(tmp_path)(image, "stop"),
    Policy.from_checkpoint(workdir)(image, "stop"),
  )
  again = (server, "strip", f"--workdir={workdir}")
  assert "which exists; choose another" in refuse(
    *again, f"--output={tmp_path}"
  )


def test_strip_rounds(server, workdir, tmp_path):
  out = convert(
    server,
    "strip",
    "--dtype=bfloat16",
    *(f"--workdir={workdir}", f"--output={tmp_path}"),
  )
  assert "equal action ids     4 of 4 actions" in out
  tiny_models.assert_identical(
    params_of(tmp_path),
    jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params_of(workdir)),
  )
  image = np.zeros((60, 80, 3), np.uint8)
  assert Policy.from_checkpoint(tmp_path)(image, "stop").shape == (8,)


def test_average_is_the_mean(server, workdir, tmp_path):
  convert(
    server,
    "average",
    "--steps=10,20",
    *(f"--workdir={workdir}", f"--output={tmp_path}"),
  )
  expected = jax.tree.map(
    lambda a, b: ((a.astype("float32") + b) / 2).astype("bfloat16"),
    params_of(workdir, 10),
    params_of(workdir, 20),
  )
  tiny_models.assert_identical(params_of(tmp_path), expected)
  assert Policy.from_checkpoint(tmp_path).action_space.name == "rt2"


def test_average_of_one_or_of_different_models_is_refused(
  workdir, tmp_path, tokenizer
):
  one = StoredCheckpoint.open(workdir, 10)
  with pytest.raises(ValueError, match="expected two or more"):
    average([one])
  with pytest.raises(ValueError, match=r"steps \[10, 10\] .* each once"):
    average([one, one])
  model = tiny_models.config("gemma1", tokenizer.vocab_size)
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  meta = tiny_models.meta(model, tokenizer)
  params = tiny_models.params(model)
  checkpoints.save(1, params, {"mu": params}, meta, tokenizer.model)
  checkpoints.close()
  with pytest.raises(ValueError, match="which are different models"):
    average([StoredCheckpoint.open(tmp_path), one])


def test_describe_says_what_a_checkpoint_is(workdir, tokenizer):
  out = run("launch/describe.py", workdir, "--details")
  summary, details = out.split("\n\n", 1)
  details = " ".join(details.split())  # columns are as wide as their names
  lines = dict(line.split(maxsplit=1) for line in summary.splitlines())
  assert len(lines) == 10 and max(map(len, lines.values())) < 200
  assert lines["trained"].startswith("step 20 of")
  assert "space 'rt2', 8 numbers, horizon 1" in lines["acts"]
  assert "cameras primary" in lines["sees"]
  served = f"python launch/serve.py --checkpoint={workdir} --camera_sizes="
  assert served in summary
  for part in (
    "bfloat16",
    "Gemma 2: width 48, 3 layers; 3,200 tokens",
    "kitchen: dataset=bridge_dataset",
    "dx -1 .. +1.008 m",
    "1st to 99th percentile of 2,135,463 steps in 60,064 episodes",
    "dx -0.02873 .. +0.02831 m",
    "what action should the robot take to {instruction}?",
    f"sha256 {tokenizer.sha256}",
    "jax 0.10.2",
  ):
    assert part in details
  total = sum(leaf.size for leaf in jax.tree.leaves(params_of(workdir)))
  assert f"{total:,}" in out


def test_wrong_commands_are_named(tmp_path):
  flags = (f"--workdir={tmp_path}/no", f"--output={tmp_path}/out")
  assert "did you mean 'to_hf'" in fail("launch/convert.py", "to_fh", *flags)
  assert "does not exist; pass the --workdir" in fail(
    "launch/convert.py", "strip", *flags
  )
  assert "got no --folder, which from_hf reads" in fail(
    "launch/convert.py", "from_hf", *flags
  )
  assert "does not exist; pass the --workdir" in fail(
    "launch/describe.py", tmp_path / "no"
  )


@pytest.mark.parametrize(
  ("command", "flag"),
  [
    ("to_hf", "--dtype=bfloat16"),
    ("from_peft", "--dtype=bfloat16"),
    ("average", "--step=10"),
    ("strip", "--steps=10,20"),
    ("merge", "--compressed"),
    ("to_hf", "--folder=hf"),
  ],
)
def test_a_flag_that_a_command_does_not_read_is_refused(
  server, tmp_path, command, flag
):
  flags = (f"--workdir={tmp_path}", f"--output={tmp_path}/out", flag)
  name = flag.partition("=")[0]
  assert f"got {name}, which {command} does not read" in refuse(
    server, command, *flags, *["--folder=x"] * (command == "from_peft")
  )

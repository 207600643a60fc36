"""Programs that a person starts: wrong flags get one clear error."""

import ast
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rt2_jax.train_config import config_hash
from tests import tiny_datasets
from tests.conftest import ROOT

CONFIG = "--config=configs/bridge_debug.py"


def fail(*command: str) -> str:
  """Runs a program that must fail; returns the end of what it printed."""
  done = subprocess.run(
    [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode != 0, done.stdout
  return (done.stdout + done.stderr)[-2000:]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--workdir=x"], "Flag --config must have a value"),
    ([CONFIG], "Flag --workdir must have a value"),
    ([CONFIG, "--workdir=x", "--confg.seed=1"], "Unknown command line flag"),
    (["--config=configs/nope.py", "--workdir=x"], "nope.py"),
    (
      [f"{CONFIG}:data", "--workdir=x"],
      ":data: got --config=configs/bridge_debug.py:data, expected",
    ),
    (
      ["--config=configs/quickstart.py:", "--workdir=x"],
      "got --config=configs/quickstart.py:, expected an argument",
    ),
    (
      ["--config=configs/rt2_paligemma_3b_one_gpu.py:x2", "--workdir=x"],
      "_one_gpu.py:x2: --config=",
    ),
    ([CONFIG, "--workdir=x", "--config.batch_size=big"], "batch_size"),
    ([CONFIG, "--workdir=x", "extra"], "expected flags only"),
    (
      [CONFIG, "--workdir=x", "--num_processes=2", "--process_id=0"],
      "got --num_processes and --process_id without --multihost",
    ),
  ],
)
def test_train_names_a_wrong_flag(flags, message, tmp_path):
  flags = [f.replace("workdir=x", f"workdir={tmp_path}/x") for f in flags]
  assert message in fail("launch/train.py", *flags)
  assert not (tmp_path / "x").exists()  # nothing was started


@pytest.mark.parametrize(
  ("program", "name", "parts"),
  [
    ("launch/train.py", "num_stps", ["'num_stps'", "mean 'num_steps'?"]),
    ("launch/estimate.py", "optimizer.b3", ["'b3'", "of config.optimizer,"]),
    ("launch/show_batch.py", "sources.x.path", ["'x'", "one of: bridge"]),
    ("data/index_records.py", "sources.bridge.bounds.dw", ["'dw'", "dpitch"]),
    ("launch/train.py", "seed.x", ["config.seed is 0 and has no fields"]),
  ],
)
def test_an_unknown_field_of_the_config_is_one_message(program, name, parts):
  module = program.removesuffix(".py").replace("/", ".")
  done = subprocess.run(
    [sys.executable, "-m", module, CONFIG, f"--config.{name}=1"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  said = done.stderr + done.stdout
  assert done.returncode == 1 and "Traceback" not in said, said
  for part in parts:
    assert said.count(part) == 1, said


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ("rt2_paligemma_3b_one_gpu:48", "got '48' GB, expected one of 24, 40, 80"),
    ("bridge_debug:48", "bridge_debug.py:48, expected no argument"),
  ],
)
def test_a_wrong_argument_of_a_config_is_one_message(config, message):
  said = fail("launch/show_batch.py", f"--config={config}")
  assert message in said and "Traceback" not in said


STATED = """
import json
from absl import app
from launch import experiment_flag
from rt2_jax.train_config import TrainConfig, config_hash

experiment_flag.define()

def main(_):
  fields = experiment_flag.read()
  config = TrainConfig.from_dict(fields)
  print(json.dumps([fields, config_hash(fields)]))

app.run(main)
"""


def fields_of(*flags: str) -> tuple[dict, str]:
  """What a program reads of its --config flags, and the hash of it."""
  done = subprocess.run(
    [sys.executable, "-c", STATED, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return tuple(json.loads(done.stdout))


def test_every_field_of_every_config_can_be_overridden():
  """Also those that its file leaves to their defaults."""
  stated, plain_hash = fields_of(CONFIG)
  module = importlib.import_module("configs.bridge_debug")
  fields = module.get_config().to_dict()
  assert stated == json.loads(json.dumps(fields))
  assert plain_hash == config_hash(fields)
  changed = {
    "objective": "answers",
    "model.final_softcap": 30.0,
    "optimizer.b2": 0.95,
    "optimizer.name": "muon",
    "prompt.template": "Do {instruction}: now",
    "evaluation.num_robot_steps": 7,
    "actions.rt1_compat": True,
    "loader.max_skipped": 3,
    "sources.bridge.weight": 2.0,
    "sources.bridge.statistics": str(ROOT / "data/stats/bridge_debug.json"),
    "sources.bridge.filters.drop_noops": True,
    "sources.bridge.bounds": "q01_q99",
    "mesh.fsdp": -1,
  }
  got, other_hash = fields_of(
    CONFIG, *(f"--config.{name}={value}" for name, value in changed.items())
  )
  assert other_hash != plain_hash
  for name, value in changed.items():
    *parents, last = name.split(".")
    part, before = got, stated
    for parent in parents:
      part, before = part[parent], before.get(parent, {})
    if name == "objective":  # what it is anyway
      assert last not in part
    else:
      assert part[last] == value and before.get(last) != value, name


def test_a_flag_that_is_no_number_is_refused():
  """NaN passes every range, and would limit nothing."""
  arm = "--server=ws://127.0.0.1:1", "--robot=x:make", "--max_speed=nan"
  said = fail("launch/robot.py", *arm)
  assert "got --max_speed=nan, expected a number" in said


def test_evaluate_needs_a_run(tmp_path):
  message = fail("launch/evaluate.py", f"--workdir={tmp_path}/nowhere")
  assert "which does not exist; pass the --workdir of a training run" in message


def test_evaluate_draws_a_robot_of_one_number(tmp_path):
  script = """
import pathlib, sys
import numpy as np
from launch import evaluate
from rt2_jax.action_tokenizer import ActionTokenizer
from rt2_jax.action_tokens import IntegerTokens
from rt2_jax.actions import ActionSpace, Dimension
from rt2_jax.evaluators.action_accuracy import ActionAccuracy
space = ActionSpace("door", "hinge", (Dimension("angle", "rad"),))
tokens = ActionTokenizer(space, IntegerTokens((), 1))
steps = np.zeros((5, 1, 1), np.float32)
result = ActionAccuracy(tokens, steps, steps, None)
evaluate.draw(result, pathlib.Path(sys.argv[1]))
"""
  picture = tmp_path / "door.png"
  subprocess.run([sys.executable, "-c", script, picture], cwd=ROOT, check=True)
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_numeric_flag_has_a_range():
  """So that 0 or -3 are refused where they are read, by the flag's name."""
  calls = [
    (path.name, node)
    for folder in ("launch", "data")
    for path in (ROOT / folder).glob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call)
    and getattr(node.func, "attr", "") in ("DEFINE_integer", "DEFINE_float")
  ]
  assert len(calls) > 30
  for path, call in calls:
    named = {keyword.arg for keyword in call.keywords}
    bounded = len(call.args) > 3 or "lower_bound" in named
    assert bounded, (path, ast.unparse(call))


def test_evaluate_names_a_flag_outside_its_range(tmp_path):
  message = fail("launch/evaluate.py", f"--workdir={tmp_path}", "--limit=-3")
  assert "flag --limit=-3: -3 is not" in message
  assert "Traceback" not in message


@pytest.mark.parametrize("text", ["{image_size: 96}", '{"image_sise": 96}'])
def test_robot_names_a_wrong_tabletop(text):
  flags = "--server=ws://127.0.0.1:9", "--robot=tabletop", f"--tabletop={text}"
  message = fail("launch/robot.py", *flags)
  assert f"got --tabletop={text}" in message and "Traceback" not in message


def test_show_batch_draws_a_picture(tmp_path):
  source = tiny_datasets.bridge_source(tmp_path / "data")
  output = tmp_path / "pictures/batch.png"
  done = subprocess.run(
    [
      sys.executable,
      "launch/show_batch.py",
      CONFIG,
      f"--config.sources.bridge.path={source.path}",
      "--config.batch_size=16",
      "--config.augmentation.crop=0.1",
      "--rows=3",
      "--step=7",
      f"--output={output}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "step 7: 3 of 16 rows; bridge 16" in done.stdout
  pixels = np.asarray(Image.open(output).convert("L"))
  assert pixels.shape[1] > 1000 and pixels.std() > 20


def test_a_picture_of_another_format_is_refused_before_data_are_read():
  flags = "--config.sources.bridge.path=nowhere", "--output=batches/step.100"
  message = fail("launch/show_batch.py", CONFIG, *flags)
  assert "got '100' for the ending of --output=batches/step.100" in message
  assert "Traceback" not in message


TABLES = """
from launch.show_batch import action_table
short = (("dx", "+0.0001 m"), ("dy", "+0.0046 m"), ("gripper", "+0.9980 open"))
long = tuple((f"left_{name}_of_the_shoulder", value) for name, value in short)
print(action_table(short, 42), action_table(long, 42), sep="\\n\\n")
"""


def test_the_table_of_an_action_is_never_cut():
  """In two columns where these fit, else in one: numbers stay whole."""
  command = [sys.executable, "-c", TABLES]
  out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
  short, long = (part.splitlines() for part in out.strip().split("\n\n"))
  assert [line.split() for line in short] == [
    ["dx", "+0.0001", "m", "gripper", "+0.9980", "open"],
    ["dy", "+0.0046", "m"],
  ]
  assert [line.split(maxsplit=1)[1] for line in long] == [
    "+0.0001 m",
    "+0.0046 m",
    "+0.9980 open",
  ]
  assert len({line.index("+") for line in long}) == 1


def test_evaluation_says_how_data_that_moved_are_named(tmp_path):
  command = [sys.executable, "launch/evaluate.py", "--workdir=data/mini_robot"]
  command += [f"--paths=tabletop={tmp_path}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert f"source tabletop: got dataset path '{tmp_path}" in done.stderr
  assert "--paths=tabletop=FOLDER names another folder" in done.stderr


WITHOUT_TENSORFLOW = """
import importlib.machinery, runpy, sys

find = importlib.machinery.PathFinder.find_spec

def find_others(name, path=None, target=None):
  return None if name == "tensorflow" else find(name, path, target)

importlib.machinery.PathFinder.find_spec = find_others
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_benchmarks_run_without_tensorflow():
  done = subprocess.run(
    [
      *(sys.executable, "-c", WITHOUT_TENSORFLOW),
      *("launch/benchmark.py", "train", "policy"),
      *("--batch_size=8", "--repeats=2", "--beside=torch"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  train, policy = map(json.loads, done.stdout.splitlines())
  assert train["parameters"] == 6_602_560 and train["batch_size"] == 8
  assert 0 < train["mfu"] < 1 and train["peak_memory_gb"] > 0.1
  # The formula, up to the rounding of what is printed.
  flops = train["step_s"] * 8 * train["matmul_flops"]
  assert train["useful_tflop"] * 1e12 / flops == pytest.approx(
    train["mfu"], rel=0.05
  )
  # The same model learns the same from the same batch.
  assert train["torch"]["parameters"] == train["parameters"]
  np.testing.assert_allclose(
    train["torch"]["losses"], train["losses"], rtol=2e-4
  )
  assert len(set(train["losses"])) == 4 and train["torch"]["ratio"] > 0
  assert policy["torch"]["same_chunks"] == 1.0
  parts = {"jpeg", "words", "image", "prefill", "passes", "call"}
  assert set(policy["ms"]) == parts and policy["actions_per_s"] > 0


def test_cpu_time_of_the_benchmark_counts_other_processes():
  """Of those that build an index, say."""
  program = (
    "import subprocess, sys\n"
    "from rt2_jax.benchmarks import meters\n"
    "burn = 'import time\\nwhile time.process_time() < 0.4: pass'\n"
    "start = meters.cpu_seconds()\n"
    "subprocess.run([sys.executable, '-c', burn], check=True)\n"
    "print(meters.cpu_seconds() - start)\n"
  )
  printed = subprocess.check_output(
    [sys.executable, "-c", program], cwd=ROOT, text=True
  )
  assert 0.4 <= float(printed.splitlines()[-1]) < 4

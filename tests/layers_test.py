"""Imports point down, TensorFlow only writes data, files are short."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# WORKSPACE.md draws the same floors. A package stands on one floor as a whole;
# inside it the order below holds. `errors` is the ground below them all.
FLOORS = [
  # words
  {"action_tokens", "actions", "batch", "images", "losses", "parameters"}
  | {"trees", "checksums", "differences", "import_path", "interrupts", "ranges"}
  | {"compiler_options", "cpu_memory", "hosts", "shipped", "storage"},
  # parts
  {"action_tokenizer", "augment", "models", "optimizers", "sharding"}
  | {"byte_ranges", "event_files", "lease", "local_copies", "tokenizer"}
  | {"clusters", "consensus", "divergence", "fields", "platforms", "programs"}
  | {"orbax_manager", "trace_summary", "trackers", "watchdog"},
  # grammar
  {"action_spaces", "decode", "objectives", "observation", "optimizer"}
  | {
    "held_params",
    "masked_actions",
    "prompt",
    "saved_step",
    "step_metrics",
    "trainable",
  }
  | {"profiling", "run_log", "speed"},
  # data and state
  {"checkpoint", "checkpoint_meta", "input_pipeline", "robot_policy"}
  | {"rollouts", "train_state"},
  # experiments and formats
  {"envs", "pytorch", "serving", "train_config", "weights"},
  # acting and starting
  {"policy", "progress", "train_data", "workdir"}
  | {"robot_actions", "robot_client"},
  # measuring and saving
  {"evaluators", "resume", "robot_loop", "saving", "tpu"},
  # training
  {"benchmarks", "gpu", "robot_log", "training"},
]
INSIDE = {
  "clusters": [
    {"code", "commands", "log_lines", "worker_scripts"},
    {"cluster"},
    {"gke", "local", "restarts", "slurm", "tpu_vm"},
  ],
  "models": [
    {"attention", "layers", "lora_config", "token_table", "lora"},
    {"variants", "weight"},
    {"remat"},
    {"gated_mlp"},
    {"siglip", "gemma"},
    {"vlm"},
  ],
  "optimizers": [{"adafactor", "muon", "rounding"}],
  "input_pipeline": [
    {"mixture", "frames", "damage", "image_size"}
    | {"unusable", "code_hash", "grippers", "growing_columns"}
    | {"dataset_info", "read_ahead", "bounds_fit"},
    {"records", "splits", "kept_index"},
    {"episodes", "index"},
    {"step_index", "filters", "resampling"},
    {"rlds"},
    {"robot_dataset"},
    {"oxe", "web"},
    {"datasets"},
    {"description"},
    {"dataset_names"},
    {"sources"},
    {"robot_text"},
    {"examples"},
    {"loader", "in_order"},
  ],
  "envs": [{"tabletop"}],
  "envs.tabletop": [
    {"seen", "surfaces", "pictures", "instructions", "scene"},
    {"camera", "tasks", "descriptions"},
    {"oracle", "suites"},
    {"environment"},
    {"trials"},
    {"baselines"},
    {"benchmark"},
  ],
  "rollouts": [
    {"films", "page", "trial", "wire"},
    {"plots", "worker", "simulation", "simulated_robot"},
    {"runner"},
    {"results"},
    {"report"},
  ],
  "pytorch": [{"decode", "random_model"}, {"policy"}, {"train_step"}],
  "weights": [
    {"stored_arrays", "hf_names", "hf_fields", "hf_processor"},
    {"npz", "fitting"},
    {"files"},
    {"hf_config", "checks", "int8"},
    {"pretrained", "stored_checkpoint", "torch_ends"}
    | {"merging", "peft_format"},
    {"export", "processor_agreement", "lora_base"},
    {"agreement"},
  ],
  "tpu": [
    {"chips", "hlo_text"},
    {"hlo_counts", "hlo_collectives", "peak_flops"},
    {"hlo_cost", "ahead_of_time"},
    {"prediction"},
    {"train_step"},
    {"control_rate", "reference_programs"},
  ],
  "serving": [
    {"batcher", "description", "numpy_msgpack", "reading"},
    {"metrics"},
    {"service"},
    {"http_json", "openpi", "vla_eval"},
    {"server"},
  ],
  "evaluators": [
    {"action_accuracy", "closer_look", "panels", "vqa"},
    {"held_out"},
  ],
  "gpu": [{"ahead_of_time", "memory_estimate"}, {"gpu_card"}],
  "benchmarks": [
    {"meters", "synthetic"},
    {"frames", "loading", "tabletop", "training"}
    | {"devices_agree", "learning"},
    {"acting", "saving", "service"},
  ],
}


LONGEST = 350  # lines of a file: a longer one is about two things


def modules() -> list[pathlib.Path]:
  package = ROOT / "rt2_jax"
  return [
    path.relative_to(package)
    for path in sorted(package.rglob("*.py"))
    if path.name != "__init__.py"
  ]


def imports(path: pathlib.Path) -> set[str]:
  """Every module imported in a file, as dotted names."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: relative import"
      found.add(node.module)
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def floor(name: str, floors: list[set[str]]) -> int:
  if name == "errors":
    return -1
  levels = [i for i, names in enumerate(floors) if name in names]
  assert levels, f"{name} stands on no floor: add it to FLOORS or INSIDE"
  return levels[0]


def own(names: set[str]) -> set[tuple[str, ...]]:
  """Imports of this package, as path parts below it."""
  return {
    tuple(name.split(".")[1:]) for name in names if name.startswith("rt2_jax.")
  }


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_point_down(module):
  here = module.with_suffix("").parts
  for there in own(imports(ROOT / "rt2_jax" / module)):
    folder, below = [], FLOORS
    while there[: len(folder) + 1] == here[: len(folder) + 1]:
      folder.append(here[len(folder)])
      below = INSIDE[".".join(folder)]
    if len(there) > len(folder):  # otherwise the package itself
      low, high = there[len(folder)], here[len(folder)]
      assert floor(low, below) < floor(high, below), (
        f"{module} imports {'.'.join(there)}, which is not below it"
      )


def test_every_module_stands_on_one_of_eight_floors():
  tops = {module.with_suffix("").parts[0] for module in modules()}
  assert tops == set().union(*FLOORS, {"errors"})
  assert len(FLOORS) <= 8


@pytest.mark.parametrize("folder", INSIDE)
def test_every_module_of_a_folder_has_a_place_in_it(folder):
  above = tuple(folder.split("."))
  inside = [m.with_suffix("").parts for m in modules()]
  here = {m[len(above)] for m in inside if m[: len(above)] == above}
  assert here == set().union(*INSIDE[folder])


def test_workspace_draws_these_floors():
  page = (ROOT / "WORKSPACE.md").read_text()
  rows = re.findall(r"^\| \d [^|]*\| ([^|]*) \|$", page, re.M)
  drawn = [set(row.replace("/", "").replace("`", "").split()) for row in rows]
  assert drawn == FLOORS


def test_workspace_says_where_every_flat_module_is():
  page = (ROOT / "WORKSPACE.md").read_text()
  table = page.partition("## Where is")[2].partition("\n## ")[0]
  named = {pathlib.Path(name).stem for name in re.findall(r"`(.+?)`", table)}
  flat = {m.stem for m in modules() if len(m.parts) == 1}
  assert not flat - named


def python_files():
  folders = ("rt2_jax", "launch", "configs", "data")
  return [p for f in folders for p in sorted((ROOT / f).rglob("*.py"))]


@pytest.mark.parametrize(
  "path", python_files(), ids=lambda p: str(p.relative_to(ROOT))
)
def test_tensorflow_only_writes_data(path):
  found = {name.split(".")[0] for name in imports(path)} & {
    "tensorflow",
    "tensorflow_datasets",
  }
  assert not found or path.relative_to(ROOT).parts[0] == "data"


def test_files_are_short():
  lines = {
    str(path.relative_to(ROOT)): len(path.read_text().splitlines())
    for path in python_files()
  }
  assert len(lines) > 100
  assert not {path: n for path, n in lines.items() if n > LONGEST}


@pytest.mark.parametrize("path", python_files(), ids=lambda p: p.name)
def test_the_library_defines_no_flags(path):
  if path.relative_to(ROOT).parts[0] == "rt2_jax":
    assert not {"absl.flags", "absl.app", "ml_collections"} & imports(path)


def loaded_by(module: str) -> set[str]:
  """Top-level packages in memory after importing a module."""
  program = (
    f"import {module}, sys; print(*{{m.split('.')[0] for m in sys.modules}})"
  )
  out = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  return set(out.stdout.split())


def test_actions_need_neither_flax_nor_tensorflow_nor_jax():
  heavy = {"flax", "tensorflow", "jax", "sentencepiece"}
  assert not heavy & loaded_by("rt2_jax.action_tokenizer")


def test_imports_start_no_jax_backend():
  """Several hosts must find each other before the first computation."""
  program = (
    "import rt2_jax.training, jax; from jax._src import xla_bridge; "
    "assert not xla_bridge.backends_are_initialized()"
  )
  subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("module", ["rt2_jax.policy", "rt2_jax.training"])
def test_acting_and_training_need_no_tensorflow(module):
  assert not {"tensorflow", "ml_collections"} & loaded_by(module)


def test_simulating_needs_neither_tensorflow_nor_jax():
  """The first cannot share a process with drawing; the second is slow."""
  loaded = loaded_by("rt2_jax.envs.tabletop.benchmark")
  assert not {"tensorflow", "jax"} & loaded


def test_a_simulation_worker_needs_numpy_alone():
  """Its interpreter has the benchmark's packages, not this package's."""
  loaded = loaded_by("rt2_jax.rollouts.worker") - set(sys.stdlib_module_names)
  packages = {name for name in loaded if not name.startswith("_")}
  assert {"numpy", "rt2_jax"} <= packages
  assert not {"PIL", "scipy", "simplejpeg", "matplotlib"} & packages

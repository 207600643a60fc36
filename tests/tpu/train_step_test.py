"""The planner on the TPU's own compiler, and what our step may cost.

`step_budget.json` holds what the configs took when they were last looked at:
print new figures with `python launch/estimate.py --config=… --json`.
"""

import dataclasses
import json
import subprocess
import sys

import pytest

from configs import rt1_debug, rt2_paligemma_3b
from rt2_jax.tpu import ahead_of_time, control_rate, train_step
from rt2_jax.tpu.chips import SLICES
from rt2_jax.train_config import TrainConfig
from tests.conftest import ROOT

KEYS = [
  *("topology", "chips", "mesh", "batch_size", "mode", "fits"),
  *("hbm_gb_per_chip", "step_s", "compute_s", "exposed_comm_s"),
  "examples_per_s",
]
CONFIG = "--config=configs/rt1_debug.py"
BUDGETS = json.loads((ROOT / "tests/step_budget.json").read_text())
# A compiler's new release moves figures by a few percent; a slip of ours, such
# as a gradient summed on every chip, by more.
GROWTH = 1.1


def config(module) -> TrainConfig:
  return TrainConfig.from_dict(module.get_config().to_dict())


@pytest.fixture(scope="module")
def tiny() -> TrainConfig:
  return config(rt1_debug)


@pytest.mark.parametrize("name", list(BUDGETS))
def test_the_step_does_not_grow(name):
  module = {"rt1_debug": rt1_debug, "rt2_paligemma_3b": rt2_paligemma_3b}
  budget = BUDGETS[name]
  estimate = train_step.estimate(
    config(module[name]), budget["topology"], "fast"
  )
  found = estimate.to_json()
  assert list(found) == [*KEYS, "mfu", "chip_hours"]
  assert estimate.fits and not estimate.cost.unknown_trip_counts
  assert found["mesh"] == budget["mesh"]
  for key in ("hbm_gb_per_chip", "step_s"):
    assert found[key] <= GROWTH * budget[key], f"{key}: {found} > {budget}"
  assert sum(estimate.hbm_split.values()) == pytest.approx(estimate.hbm_bytes)
  assert min(estimate.hbm_split.values()) > 0


def test_useful_flops_by_hand(tiny):
  img, llm = tiny.model.img, tiny.model.llm
  encoder = (
    16 * 16 * 3 * img.width  # patches
    + img.depth * (4 * img.width**2 + 2 * img.width * img.mlp_dim)
    + img.width * llm.width
  )
  heads = llm.num_heads * llm.head_dim
  keys = 2 * llm.num_kv_heads * llm.head_dim
  decoder = llm.depth * llm.width * (2 * heads + keys + 3 * llm.mlp_dim)
  table = llm.vocab_size * llm.width
  columns = 16 + 24 + 9 - 1
  one = 6 * (encoder * 16 + decoder * columns + table * 9) + 12 * (
    img.depth * 16**2 * img.width + llm.depth * columns**2 * heads
  )
  assert train_step.useful_flops(tiny) == tiny.batch_size * one


def test_a_step_that_is_too_large_says_what_to_change():
  large = dataclasses.replace(config(rt2_paligemma_3b), batch_size=1024)
  estimate = train_step.estimate(large, "v5e:2x2", "fast")
  assert not estimate.fits and estimate.to_json()["step_s"] is None
  advice = train_step.advice(estimate, large)
  assert "of 16.9 per chip, 8.8 of them for parameters and optimizer" in advice
  assert "try config.microbatches = 2, a smaller --batch_size or a" in advice


def test_an_unknown_slice_lists_the_known_ones(tiny):
  with pytest.raises(ValueError, match="got 'v5e:16x15' for topology") as info:
    train_step.estimate(tiny, "v5e:16x15", "fast")
  assert all(name in str(info.value) for name in SLICES)
  assert "did you mean 'v5e:16x16'?" in str(info.value)


def test_slices_reduce_their_gradients_over_the_network(tiny):
  """In a ring of two, each chip sends as many bytes as its gradients have.

  And more: the compiler sends those of the two uses of the token table apart,
  and its pipelined loop over 4 layers exchanges 5 times.
  """
  config = dataclasses.replace(tiny, mesh=train_step.parse_mesh("2x1x4x1"))
  found = train_step.estimate(config, "v5e:2x2*2", "fast")
  cost, gradients = found.cost, found.facts["parameters"]
  assert 1 <= cost.dcn_bytes / gradients < 1.7
  assert 0 < cost.exposed_dcn_s <= cost.exposed_comm_s
  assert cost.exposed_dcn_s < cost.dcn_bytes / 3.125e9 + 0.1


def test_a_mesh_that_does_not_multiply_is_refused(tiny):
  wrong = dataclasses.replace(tiny, mesh=train_step.parse_mesh("1x2x2x1"))
  with pytest.raises(ValueError, match="expected axes that multiply to 8 dev"):
    train_step.estimate(wrong, "v5e:2x4", "fast")


def test_a_batch_that_does_not_divide_is_refused(tiny):
  wrong = dataclasses.replace(tiny, batch_size=50)
  with pytest.raises(
    ValueError,
    match="got config.batch_size = 50, expected a multiple of 8: .* 48 or 56",
  ):
    train_step.estimate(wrong, "v5e:2x4", "fast")


@pytest.mark.parametrize("slices", ["0", "", "two"])
def test_a_number_of_slices_that_is_none_is_refused(slices):
  with pytest.raises(ValueError, match="expected a number of slices after"):
    ahead_of_time.check_topology(f"v5e:2x2*{slices}")


@pytest.mark.parametrize("text", ["1x2", "1x2x3x4x5", "axb", "1x2x128xfour"])
def test_a_mesh_that_is_no_mesh_is_refused(text):
  with pytest.raises(ValueError, match=f"got mesh '{text}', expected 4 numb"):
    train_step.parse_mesh(text)


def test_a_machine_without_the_compiler_says_what_to_install():
  hidden = "import sys; sys.modules['libtpu'] = None; sys.argv[0] = {0!r}; "
  hidden += "import runpy; runpy.run_path({0!r}, run_name='__main__')"
  done = run("-c", hidden.format("launch/estimate.py"), CONFIG)
  assert done.returncode != 0
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("got no module libtpu, which holds the TPU compiler")
  assert "`pip install -e '.[estimate]'`" in last


def test_stand_ins_write_the_configs_own_chunks(tiny):
  (source,) = tiny.sources.values()
  sources = {"all": source, "own": dataclasses.replace(source, horizon=2)}
  actions = dataclasses.replace(tiny.actions, horizon=4)
  tokenizers = train_step.stand_in_action_tokenizers(
    dataclasses.replace(tiny, sources=sources, actions=actions)
  )
  assert {k: t.answer_length for k, t in tokenizers.items()} == {
    "all": 4 * 8,
    "own": 2 * 8,
  }


def test_slices_are_counted():
  assert ahead_of_time.count_chips("v5p:8x8x16*2") == (2048, 2)
  with pytest.raises(ValueError, match="expected a number of slices after"):
    ahead_of_time.count_chips("v5e:4x4*two")


def test_a_sweep_prints_a_table_with_the_best_first():
  done = run("launch/estimate.py", CONFIG, "--sweep", "--profile=1")
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.startswith("compiler-predicted times")
  assert "MFU = useful FLOP / (step s * chips * peak)" in done.stdout
  rows = [line.split() for line in done.stdout.splitlines()[2:5]]
  assert sorted(int(row[3]) for row in rows) == [48, 96, 192]
  used = [float(row[-4].removesuffix("%")) for row in rows]
  assert used == sorted(used, reverse=True)


def test_a_sweep_tries_meshes_that_the_batch_divides_on(tiny):
  found = train_step.meshes(tiny, "v5e:4x4*2")
  sizes = [tuple(mesh.values()) for mesh in found]
  assert sizes == [(2, 1, 8, 2), (2, 1, 4, 4)]
  odd = dataclasses.replace(tiny, batch_size=49)
  with pytest.raises(ValueError, match="got config.batch_size = 49, expected"):
    train_step.meshes(odd, "v5e:4x4")


def test_a_policy_has_a_control_rate():
  done = run("launch/estimate.py", CONFIG, "--program=decode", "--json")
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  assert list(found) == ["config", "config_hash", *KEYS, "passes", "hz"]
  assert found["topology"] == "v5e:1x1" and found["chips"] == 1
  assert found["fits"] and found["batch_size"] == 1
  assert found["hz"] == pytest.approx(1 / found["step_s"], rel=0.02)
  assert found["passes"] == control_rate.PASSES


def test_every_pass_over_an_action_takes_its_time(tiny):
  one, two, four = (
    control_rate.predict(tiny, "v5e:1x1", "fast", passes=n).cost.step_s
    for n in (1, 2, 4)
  )
  # A tiny model's pass takes little beside its images.
  assert four - two == pytest.approx(2 * (two - one)) and two > 1.01 * one


def test_one_chip_of_the_same_generation_acts():
  assert control_rate.smallest_slice("v5p:8x8x16") == "v5p:2x2x1"


def test_text_routes_have_no_control_rate(tiny):
  text = dataclasses.replace(
    tiny, actions=dataclasses.replace(tiny.actions, route="integers")
  )
  with pytest.raises(ValueError, match="route = 'integers', expected 'rare'"):
    control_rate.predict(text, "v5e:1x1", "fast")


def test_plans_have_no_control_rate(tiny):
  prompt = dataclasses.replace(tiny.prompt, plan_length=7)
  planning_robot = dataclasses.replace(tiny, prompt=prompt)
  with pytest.raises(ValueError, match="plan_length = 7, expected 0: how many"):
    control_rate.predict(planning_robot, "v5e:1x1", "fast")


def test_decoding_has_no_mesh():
  done = run("launch/estimate.py", CONFIG, "--program=decode", "--mesh=1x1x2x1")
  assert done.returncode != 0
  assert "got --program=decode with --sweep or --mesh, expected" in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True
  )

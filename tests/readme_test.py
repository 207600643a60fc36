"""Figures in README and docs are those of the files that programs wrote."""

import json
import pathlib
import re

import pytest

from rt2_jax.rollouts import results
from tests.conftest import ROOT

MINI = ROOT / "docs/mini"
MICRO = ROOT / "docs/micro"
SEED_1 = MICRO / "seed_1"
RESULTS = ROOT / "docs/results"
# The columns of README's table.
SHOWN = ("cofinetuned", "robot_only", "from_scratch", "planning", "guess")


def text_of(page: str) -> str:
  """A page in one line, so that a sentence may be broken anywhere."""
  return " ".join((ROOT / page).read_text().split())


def rows(name: str) -> list[dict]:
  """What a program printed, one object per line."""
  lines = (RESULTS / f"{name}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_every_program_and_config_that_is_named_exists():
  pages = [ROOT / name for name in ("README.md", "WORKSPACE.md", "Makefile")]
  pages += [ROOT / "data/README.md", *(ROOT / "docs").rglob("*.md")]
  pages += (ROOT / "docs").rglob("*.json*")
  text = "\n".join(page.read_text() for page in pages)
  folders = "configs|data|launch|rt2_jax"
  named = set(re.findall(rf"\b(?:{folders})/[\w/]+\.py\b", text))
  assert len(named) > 50
  named -= {"configs/x.py"}  # stands for any
  assert not {name for name in named if not (ROOT / name).is_file()}


@pytest.mark.parametrize("folder", [MINI, MICRO, SEED_1])
def test_the_tables_of_the_mini_robots_are_the_programs(folder):
  table = (folder / results.TABLE).read_text()
  assert table == results.table(results.read(folder))
  assert table in (ROOT / "docs/mini.md").read_text()


def test_the_table_of_lora_is_the_programs():
  folder = ROOT / "docs/lora"
  found = results.read(folder)
  shown = {name: found[name] for name in ("full", "lora", "guess")}
  table = results.table(shown)
  assert table in (ROOT / "docs/one_gpu.md").read_text()
  first_rows = [line.split(" | ") for line in table.splitlines()[2:5]]
  assert [row[0].split(" (")[0] for row in first_rows] == [
    "| seen tasks",
    "| unseen objects",
    "| symbol understanding",
  ]
  for _, full, lora, _ in first_rows:
    assert f"{lora} and {full}%" in text_of("README.md")


def test_the_table_of_ablations_is_the_programs():
  found = results.read(ROOT / "docs/ablations")
  runs = ("plain", "masked", "state", "state_dropout", "guess")
  table = results.table({name: found[name] for name in runs})
  assert table in (ROOT / "docs/mini.md").read_text()


def test_the_table_of_readme_is_a_part_of_it():
  found = results.read(MINI)
  table = results.table({policy: found[policy] for policy in SHOWN})
  assert table in (ROOT / "README.md").read_text()


def test_all_sizes_and_seeds_met_the_same_episodes():
  folders = MINI, MICRO, SEED_1
  found = [one for f in folders for one in results.read(f).values()]
  assert len({result["trials_hash"] for result in found}) == 1


def test_the_figures_of_the_quick_start_are_the_programs():
  (result,) = results.read(ROOT / "docs/quickstart").values()
  suites = result["suites"]
  symbols = [suites[name] for name in suites if name.startswith("symbols_")]
  figures = (
    "{successes} of {n} seen tasks, ".format(**suites["seen"])
    + "{successes} of {n} with unseen objects, ".format(
      **suites["objects_easy"]
    )
    + "{successes} of {n} with symbols.".format(**results.pool(symbols))
  )
  assert figures in text_of("README.md")


def test_the_table_of_the_finished_robot_is_the_programs():
  found = results.read(ROOT / "docs/mini_robot")
  assert results.table(found).strip() in (ROOT / "README.md").read_text()
  robot, guess = (found[name]["suites"] for name in ("mini_robot", "guess"))
  of = {name: suite["successes"] for name, suite in robot.items()}
  figures = (
    "best ({symbols_shapes} of 100), then signs ({symbols_signs}); with "
    "numbers ({symbols_numbers}) the robot is no better than chance"
  )
  assert figures.format(**of) in text_of("README.md")
  chance = guess["symbols_numbers"]["successes"]
  weak = f"numbers ({of['symbols_numbers']}%, chance is {chance}%)"
  assert weak in text_of("docs/model_card.md")


def test_the_figures_of_plans_are_the_programs():
  suites = results.read(MINI)["planning"]["suites"]
  right = sum(
    bool(trial["plan_is_right"])
    for name in suites
    if name.startswith("reasoning_")
    for trial in suites[name]["trials"]
  )
  figure = f"{right} of 500 plans for reasoning named the right thing"
  assert figure in text_of("README.md")


@pytest.mark.parametrize("folder", [MINI, MICRO, SEED_1])
def test_every_run_names_its_config(folder):
  for policy, result in results.read(folder).items():
    if not results.is_baseline(result):
      assert len(result["config_hash"]) == 16, policy
      assert result["web"] and result["command"]


def test_the_figures_of_bridge_are_the_programs():
  found = json.loads((RESULTS / "bridge.json").read_text())
  l1 = [f"{1e3 * found[f'l1/{name}']:.2f}" for name in ("dx", "dy", "dz")]
  for row in (
    f"token accuracy | {found['forced_accuracy/mean']:.3f} |",
    f"all 8 dimensions | {found['within_2_bins/all']:.1%} of 250 steps |",
    f"x, y, z | {', '.join(l1)} mm |",
    f"training time, {found['step']} steps of 50 examples |",
  ):
    assert row in text_of("docs/your_robot.md"), row
  assert len(found["config_hash"]) == 16


def test_the_figures_of_slices_are_the_programs():
  *steps, v5e, v6e, v5e_int8, v6e_int8 = rows("estimates")
  text = text_of("docs/pods.md")
  for step in steps:
    row = "| {topology} | {step_s:.3f} s | {mfu:.1%} | {hbm_gb_per_chip:.2f} GB"
    assert row.format(**step) in text, step
  # In the table's order.
  places = [text.index("| {step_s:.3f} s |".format(**step)) for step in steps]
  assert places == sorted(places)
  assert v5e_int8["int8"] and v6e_int8["int8"]
  for small, large in ((v5e, v6e), (v5e_int8, v6e_int8)):
    hz = f"{small['hz']} / {large['hz']} per second"
    assert f"| one v5e / v6e chip | {hz}" in text
  assert all(len(row["config_hash"]) == 16 for row in rows("estimates"))


def test_the_figures_of_saving_are_the_programs():
  cost, local, bucket = rows("saving")
  text = text_of("docs/training.md")
  figure = "a save in {steps} steps of `mini_robot_only` adds {overhead:.1%}"
  assert figure.format(**cost) in text
  text = text_of("docs/pods.md")
  for name in ("save", "restore"):
    rates = [f"{row[f'{name}_mb_per_s']:.0f}" for row in (local, bucket)]
    assert f"at {' and '.join(rates)} MB/s" in text
  waits = f"{local['blocked_s']:.2f} and {bucket['blocked_s']:.2f} s"
  assert f"Training waits {waits} for a save" in text


def test_the_errors_of_predictions_are_the_programs():
  for case in rows("validation"):
    assert case["mode"] == "full" and len(case["config_hash"]) == 16
    digits = 3 if case["published_step_s"] < 10 else 2
    published, predicted = (
      f"{case[name]:.{digits}f} s"
      for name in ("published_step_s", "predicted_step_s")
    )
    error = f"{case['error']:+.1%}".replace("-", "\N{MINUS SIGN}")
    row = (
      f"| {published} | {predicted} | {error} | {case['hbm_gb_per_chip']} GB"
    )
    assert row in text_of("docs/pods.md"), row


def test_the_figures_of_this_machine_are_the_programs():
  loader, train, policy, tabletop, two_cameras = rows("benchmark")
  stages = loader["ms_per_example"]
  for figure in (
    f"| {loader['examples_per_cpu_s']} | {loader['first_batch_cpu_s']:.1f} |",
    f"| {two_cameras['examples_per_cpu_s']} | "
    f"{two_cameras['first_batch_cpu_s']:.1f} |",
    f"| {loader['examples_per_cpu_s_resized_on_host']} | | |",
    f"{loader['rss_growth_mb_over_10000_batches']} MB over 10,000 batches",
    f"{loader['index_steps_per_cpu_s'] / 1000:.0f} k steps per CPU-second",
    f"reading one step takes {1e3 * stages['read']:.0f} µs",
    f"its tokens {1e3 * stages['tokens']:.0f} µs and "
    f"its image {stages['decode']:.2f} ms",
    f"takes {train['step_s']:.2f} s ({train['examples_per_s']:.0f} examples",
    f"{train['mfu']:.0%} of what",
    f"one action {policy['action_ms']:.0f} ms",
    f"{tabletop['steps_per_cpu_s']} steps with pictures per CPU-second",
  ):
    assert figure in text_of("docs/numbers.md"), figure
  read = (
    f"reads {loader['examples_per_cpu_s']:,} examples per CPU-second, and "
    f"{two_cameras['examples_per_cpu_s']:,} with two cameras and a state"
  )
  assert read in text_of("README.md")
  assert len(train["config_hash"]) == len(policy["config_hash"]) == 16


def closed_loop_line(row: dict) -> str:
  """A row of docs/serving.md's table of successes."""
  low, high = (f"{100 * side:.0f}" for side in row["interval"])
  return (
    f"| {row['horizon']} | {row['execute']} | {row['way']} | "
    f"{row['successes']} of {row['n']} | {low} to {high}% |"
  )


def serving_table(measured: list[dict]) -> str:
  """docs/serving.md's table of times: parts in rows, policies in columns."""
  policy, service = (
    [row for row in measured if row["benchmark"] == name]
    for name in ("policy", "service")
  )
  lines = [
    ["H, robots", *(f"{row['horizon']}, {row['robots']}" for row in policy)],
    ["---"] * (1 + len(policy)),
  ]

  def add(name, found, show):
    lines.append([name, *(show(row) for row in found)])

  def times(row, part):
    return "{p50:.1f} / {p95:.1f} / {p99:.1f}".format(**row["ms"][part])

  for part in ("jpeg", "words", "image", "prefill", "passes", "call"):
    add(part, policy, lambda row, part=part: times(row, part))
  for beside in ("torch", "int8"):
    add(beside, policy, lambda row, name=beside: times(row[name], "call"))
  add("same in int8", policy, lambda row: f"{row['int8']['same_chunks']:.0%}")
  add("near in int8", policy, lambda row: f"{row['int8']['within_2_bins']:.0%}")
  for part in ("network", "read", "queue", "call", "answer"):
    add(f"served: {part}", service, lambda row, part=part: times(row, part))
  add("Hz of a robot", service, lambda row: f"{row['hz']:.1f}")
  add("mean passes", service, lambda row: f"{row['passes']:.2f}")
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_figures_of_serving_are_the_programs():
  page = (ROOT / "docs/serving.md").read_text()
  found = rows("serving")
  assert serving_table([row for row in found if "benchmark" in row]) in page
  for row in found:
    assert "benchmark" in row or closed_loop_line(row) in page


def planned_gb(part: str, remat: str) -> float:
  (found,) = [
    row["planned_memory_gb"]
    for row in rows("gpu_plans")
    if (row["part"], row.get("remat")) == (part, remat)
  ]
  return found


def test_the_memory_of_one_gpu_is_the_programs_on_every_page():
  part = {row["part"]: row for row in rows("gpu") if "seconds" not in row}
  lora, full = part["lora"], part["full_24"]
  exact = "{peak_memory_gb:.1f} GB measured, batch {batch_size}"
  assert exact.format(**lora) in text_of("docs/comparison.md")
  both = "{:.1f} and {:.1f} GB were measured"
  both = both.format(lora["peak_memory_gb"], full["peak_memory_gb"])
  assert both in text_of("README.md")
  for name in ("lora", "full_24"):
    figure = f"about {planned_gb(name, 'ungated'):.0f} GB"
    assert figure in text_of("README.md")
    assert figure in text_of("docs/one_gpu.md")


def test_the_plans_for_an_h100_are_the_compilers():
  page = (ROOT / "docs/one_gpu.md").read_text()
  found = [row for row in rows("gpu_plans") if "remat" in row]
  wrong = []
  for part in dict.fromkeys(row["part"] for row in found):
    ours = {r["remat"]: r for r in found if r["part"] == part}
    name = pathlib.Path(ours["full"]["config"]).name.replace(".py", "")
    cells = [
      f"{ours[remat]['planned_memory_gb']:.1f}"
      if remat in ours
      else "too large"
      for remat in ("full", "ungated", "dots", "none")
    ]
    assert f"| `{name}` | {' | '.join(cells)} |" in page
    wrong += [
      abs(row["estimated_memory_gb"] / row["planned_memory_gb"] - 1)
      for row in ours.values()
      if row["remat"] != "none"
    ]
  assert f"within {max(wrong):.1%} of the plans" in text_of("docs/one_gpu.md")
  measured = {
    row["part"]: row["peak_memory_gb"]
    for row in rows("gpu")
    if "planned_memory_gb" in row
  }
  wrong = [abs(planned_gb(p, "full") / gb - 1) for p, gb in measured.items()]
  assert f"the plans are within {max(wrong):.1%}" in text_of("docs/one_gpu.md")


def test_the_figures_of_one_gpu_are_the_programs():
  found = rows("gpu")
  measured = [row for row in found if "seconds" not in row]
  torch = {
    (row["program"], row.get("robots")): row
    for row in measured
    if row["part"] == "torch"
  }
  text = text_of("docs/one_gpu.md")
  errors = []
  for row in measured:
    if row["part"] == "decode":
      robots, other = row["robots"], torch["decode", row["robots"]]
      for one in (row, other):
        figure = f"| {one['call_ms']:.1f} ms | {one['actions_per_s']:.1f} /s |"
        assert figure in text, (robots, figure)
    if "step_s" not in row or row["part"] == "torch":
      continue
    other = torch.get((row["part"], None))
    beside = "not measured"
    if other:
      beside = "{examples_per_s:.1f} /s, {peak_memory_gb:.1f} GB".format(
        **other
      )
    line = (
      f"| {row['batch_size']} | {row['step_s']:.3f} s | "
      f"{row['examples_per_s']:.1f} /s | {row['mfu']:.0%} | "
      f"{row['peak_memory_gb']:.1f} GB | {row['estimated_memory_gb']:.1f} GB | "
      f"{beside} |"
    )
    assert line in text, line
    error = row["estimated_memory_gb"] / row["peak_memory_gb"] - 1
    errors.append(abs(error))
    assert len(row["config_hash"]) == 16
  assert len(errors) == 4 and f"within {max(errors):.1%} of these" in text
  trials = {row["name"]: row for row in rows("gpu_trials")}
  plain, ours = (trials[f"program {n} 1"]["ms"] for n in ("plain", "dsf_nt"))
  assert f"{ours:.1f} ms instead of {plain:.1f}" in text

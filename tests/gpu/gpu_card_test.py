"""Does it fit: yes, no, and with which flags."""

import dataclasses
import json
import subprocess
import sys

import pytest

from launch import config_file
from rt2_jax.errors import UserError
from rt2_jax.gpu import gpu_card, memory_estimate
from rt2_jax.models.variants import REMAT
from rt2_jax.train_config import TrainConfig
from tests.conftest import ROOT


def config(name: str, remat: str | None = None, **changes) -> TrainConfig:
  fields = config_file.read(f"configs/{name}") | changes
  if remat:
    fields["model"]["remat"] = remat
  return TrainConfig.from_dict(fields)


IN_PARTS = {"model.remat": "dots", "microbatches": 4}


@pytest.mark.parametrize(
  ("name", "card", "flags"),
  [
    ("rt2_paligemma_3b_lora.py", "gpu:12GB", IN_PARTS),
    ("rt2_paligemma_3b_one_gpu.py:24", "gpu:24GB", None),
    ("rt2_paligemma_3b_one_gpu.py:40", "gpu:40GB", None),
    ("rt2_paligemma_3b_one_gpu.py:80", "gpu:80GB", None),
  ],
)
def test_the_one_gpu_configs_fit_their_cards(name, card, flags):
  """And keep as much for the backward pass as fits, of all rows at once."""
  answer = gpu_card.answer(config(name), card)
  assert answer.fits and answer.flags == flags
  if flags:
    figure = f"keep all in {answer.changed.total / 1e9:.1f} GB by the formula"
    page = (ROOT / "docs/one_gpu.md").read_text()
    assert figure in " ".join(page.split())


@pytest.mark.parametrize(
  ("remat", "card", "faster"),
  [
    ("full", "gpu:10GB", None),
    ("full", "gpu:11GB", IN_PARTS),
    ("full", "gpu:12GB", IN_PARTS),
    ("full", "gpu:24GB", {"model.remat": "dots"}),
    ("ungated", "gpu:24GB", {"model.remat": "dots"}),
    ("dots", "gpu:80GB", None),
    ("none", "gpu:80GB", None),
  ],
)
def test_room_for_more_products_is_named(remat, card, faster):
  answer = gpu_card.answer(config("rt2_paligemma_3b_lora.py", remat), card)
  assert answer.fits and answer.flags == faster
  assert answer.to_json()["faster_with"] == faster
  if faster:
    assert answer.changed.total * gpu_card.MARGIN <= answer.limit
    (line,) = list(answer.lines())[1:]
    assert all(f"--config.{n}={value}" in line for n, value in faster.items())


def test_a_card_too_small_names_flags_with_which_it_fits():
  large = config("rt2_paligemma_3b.py", batch_size=32)
  expected = {
    "gpu:40GB": {"param_dtype": "bfloat16", "moment_dtype": "bfloat16"},
    "gpu:24GB": {"param_dtype": "bfloat16", "name": "adafactor"},
  }
  for card, fields in expected.items():
    answer = gpu_card.answer(large, card)
    assert not answer.fits and answer.changed.total < answer.limit
    assert answer.flags == {f"optimizer.{n}": v for n, v in fields.items()}
  assert gpu_card.answer(large, "gpu:12GB").flags["model.lora_rank"] == 16


@pytest.mark.parametrize(("rows", "parts"), [(15, 15), (9, 3), (16, 2)])
def test_any_number_of_rows_is_cut_into_parts(rows, parts):
  lora = config("rt2_paligemma_3b_lora.py", "full", batch_size=rows)
  cut = memory_estimate.of(dataclasses.replace(lora, microbatches=parts))
  flags, _ = gpu_card.changes_that_fit(lora, gpu_card.MARGIN * cut.total)
  assert flags == {"microbatches": parts}


def test_adapters_are_named_where_a_run_can_have_them():
  fields = config_file.read("configs/rt2_paligemma_3b_one_gpu.py:24")
  fields["optimizer"]["frozen"] = ("^llm/.*norm",)
  frozen = TrainConfig.from_dict(fields)
  flags = gpu_card.answer(frozen, "gpu:12GB").flags
  assert flags["model.lora_rank"] == 16 and flags["optimizer.frozen"] == ()
  scratch = dataclasses.replace(frozen, pretrained="")  # adapters need a base
  assert gpu_card.answer(scratch, "gpu:12GB").flags is None


def test_a_card_that_nothing_fits():
  answer = gpu_card.answer(config("rt2_paligemma_3b_lora.py"), "gpu:4GB")
  assert not answer.fits and answer.flags is None
  assert "a larger GPU" in " ".join(answer.lines())


@pytest.mark.parametrize("topology", ["gpu", "gpu:", "gpu:x", "gpu:0GB", "v5e"])
def test_what_is_no_card_is_refused(topology):
  with pytest.raises(UserError, match="such as gpu:24GB"):
    gpu_card.parse_card(topology)


def test_the_flags_are_flags_and_fit():
  """What is printed can be typed."""
  start = [sys.executable, "launch/estimate.py", "--topology=gpu:12GB"]
  start += ["--config=configs/rt2_paligemma_3b.py", "--json", "--batch_size=32"]

  def ask(*flags):
    done = subprocess.run(
      [*start, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)

  first = ask()
  flags = [f"--config.{n}={v}" for n, v in first["fits_with"].items()]
  flags = [f.replace("[", "(").replace("']", "',)") for f in flags]
  second = ask(*flags)
  assert not first["fits"] and second["fits"]
  assert second["memory_gb"] < second["limit_gb"] == 11


def test_slices_and_cards_are_not_mixed():
  done = subprocess.run(
    [
      *(sys.executable, "launch/estimate.py", "--topology=gpu:24GB,v5e:1x1"),
      "--config=configs/rt2_paligemma_3b.py",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode and "expected GPUs alone" in done.stdout + done.stderr


def rows(name):
  lines = (ROOT / "docs/results" / name).read_text().splitlines()
  return [r for r in map(json.loads, lines) if "estimated_memory_gb" in r]


def error(row, found_gb):
  """Of the formula, relative. Before rows named it, remat was "full"."""
  name = row["config"].removeprefix("configs/")
  memory = memory_estimate.of(config(name, row.get("remat", "full")))
  return abs(memory.total / 1e9 / found_gb - 1)


def test_the_margin_is_the_error_that_was_measured():
  errors = [error(row, row["peak_memory_gb"]) for row in rows("gpu.jsonl")]
  assert len(errors) == 4 and max(errors) < gpu_card.MARGIN - 1


def test_the_margin_is_the_error_beside_the_plans_of_xla():
  found = rows("gpu_plans.jsonl")
  assert {row["remat"] for row in found} == set(REMAT)
  errors = [error(row, row["planned_memory_gb"]) for row in found]
  assert len(errors) >= 14 and max(errors) < gpu_card.MARGIN - 1

"""Does it fit: yes, no, and with which flags."""

import json
import subprocess
import sys

import pytest

from launch import config_file
from rt2_jax.errors import UserError
from rt2_jax.gpu import gpu_card, memory_estimate
from rt2_jax.train_config import TrainConfig
from tests.conftest import ROOT


def config(name: str, **fields) -> TrainConfig:
  return TrainConfig.from_dict(config_file.read(f"configs/{name}") | fields)


@pytest.mark.parametrize(
  ("name", "card"),
  [
    ("rt2_paligemma_3b_lora.py", "gpu:12GB"),
    ("rt2_paligemma_3b_one_gpu.py:24", "gpu:24GB"),
    ("rt2_paligemma_3b_one_gpu.py:40", "gpu:40GB"),
    ("rt2_paligemma_3b_one_gpu.py:80", "gpu:80GB"),
  ],
)
def test_the_one_gpu_configs_fit_their_cards(name, card):
  answer = gpu_card.answer(config(name), card)
  assert answer.fits and answer.flags is None


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


def test_the_margin_is_the_error_that_was_measured():
  rows = (ROOT / "docs/results/gpu.jsonl").read_text().splitlines()
  errors = []
  for row in map(json.loads, rows):
    if "estimated_memory_gb" in row:
      name = row["config"].removeprefix("configs/")
      found = memory_estimate.of(config(name)).total / 1e9
      errors.append(abs(found / row["peak_memory_gb"] - 1))
  assert len(errors) == 4 and max(errors) < gpu_card.MARGIN - 1

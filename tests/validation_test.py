"""The two published steps: they have the published sizes, and they compile."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import validation
from rt2_jax import optimizer, sharding, trees
from rt2_jax.models import gemma
from rt2_jax.models.vlm import abstract_params
from rt2_jax.tpu import reference_programs
from tests.conftest import ROOT


def run(*flags: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "launch/validation.py", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_paligemma_reads_256_and_128_tokens():
  config = validation.paligemma_3b()
  assert config.model.num_image_tokens == 256
  assert config.prompt.prefix_length + config.prompt.suffix_length - 1 == 128
  count = optimizer.count_parameters(abstract_params(config.model))
  assert count == 2_923_335_408
  published = validation.cases()["paligemma_3b"].published_step_s
  assert published == pytest.approx(2.368, abs=5e-4)


def test_the_decoder_takes_as_much_as_maxtext_says():
  config = validation.decoder_16b()
  # Their own count: 1236.7 TFLOP per chip, in 10.31 s.
  assert config.maxtext_flops() / 256 == pytest.approx(1236.7e12, rel=1e-4)
  published = validation.cases()["decoder_16b"].published_step_s
  assert published == pytest.approx(10.31, abs=5e-3)
  model = reference_programs.Decoder(config)
  mesh = sharding.make_mesh({"fsdp": 8})
  params = trees.flatten(reference_programs.abstract_decoder(model, mesh))
  weights = sum(
    leaf.size
    for name, leaf in params.items()
    if name != "table" and not name.endswith("scale")
  )
  scores = 12 * 32 * 2048**2 * 64 * 128
  counted = config.batch_size * (6 * 2048 * weights + scores)
  assert config.maxtext_flops() == counted
  assert weights == pytest.approx(15.7e9, rel=1e-3)


def test_the_longest_dimension_that_divides_is_split():
  mesh = sharding.make_mesh({"fsdp": 8})

  def split(*shape):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    spec = reference_programs.placed(
      leaf, mesh, reference_programs.longest
    ).sharding.spec
    return spec.index("fsdp") if "fsdp" in spec else None

  assert split(18, 2, 2048, 16384) == 3
  assert split(257152, 2048) == 1  # the longest does not divide
  assert split(27, 1152, 4304) is None  # none does
  assert split(1024, 1024) is None  # 4 MiB are not worth it


def test_flash_attention_is_causal_attention(monkeypatch):
  splash = reference_programs.splash
  on_cpu = functools.partial(splash.make_splash_mha, interpret=True)
  monkeypatch.setattr(splash, "make_splash_mha", on_cpu)
  shape = (2, 128, 2, 128)
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, shape) for key in keys)
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((128, 128), bool)), (2, 128, 128))
  mesh = sharding.make_mesh({"fsdp": 2}, jax.devices()[:2])
  with sharding.scope(mesh):
    found = jax.jit(reference_programs.flash_attend)(q, k, v)
  expected = gemma.attend(q, k, v, mask, 0.0)
  np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["lookup", "scores"])
def test_the_token_table_is_ours_without_our_gradients(name):
  table = jax.random.normal(jax.random.key(1), (16, 8))
  ids = jnp.array([[3, 0, 15]])
  plain = getattr(reference_programs, f"plain_{name}")
  arguments = (table, ids, "float32") if name == "lookup" else (table, table)
  ours = getattr(gemma, name)
  np.testing.assert_allclose(plain(*arguments), ours(*arguments), rtol=1e-6)


def test_both_cases_compile_and_come_near():
  """Fast mode: what the claim is about, full mode, takes minutes."""
  done = run("--mode=fast")
  assert done.returncode == 0, done.stderr[-2000:]
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  memory = {"paligemma_3b": 15.46, "decoder_16b": 9.44}
  assert [row["case"] for row in rows] == list(memory)
  for row in rows:
    assert row["label"] == "compiler-predicted" and row["mode"] == "fast"
    assert row["hbm_gb_per_chip"] == pytest.approx(
      memory[row["case"]], rel=0.05
    )
    ratio = row["predicted_step_s"] / row["published_step_s"]
    assert row["error"] == pytest.approx(ratio - 1, abs=2e-3)
    assert abs(row["error"]) < 0.35


def test_a_step_that_does_not_fit_has_no_error():
  case = validation.cases()["decoder_16b"]
  large = dataclasses.replace(case.program, batch_size=48 * 256)
  row = validation.compare(dataclasses.replace(case, program=large), "fast")
  assert row["predicted_step_s"] is None and row["error"] is None
  assert row["hbm_gb_per_chip"] > 17


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--cases=paligema_3b"], "did you mean 'paligemma_3b'?"),
    (["extra"], "expected flags only"),
  ],
)
def test_a_wrong_flag_is_named(flags, message):
  done = run(*flags)
  assert done.returncode != 0 and message in done.stdout + done.stderr
  assert "Traceback" not in done.stderr

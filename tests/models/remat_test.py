"""Products that a step computes again, as docs/one_gpu.md counts them."""

import math

import jax
import pytest
from jax.interpreters import partial_eval

from launch import config_file
from rt2_jax import sharding
from rt2_jax.models.variants import REMAT
from rt2_jax.tpu import train_step
from rt2_jax.train_config import TrainConfig
from tests.conftest import ROOT


def flops(jaxpr) -> float:
  """FLOP of all products; the body of a scan counts as often as it runs."""
  total = 0.0
  for equation in jaxpr.eqns:
    params = equation.params
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
      total += 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
    # The branches are those of platforms, with the same products.
    first = params["branches"][:1] if "branches" in params else params.values()
    bodies = [getattr(body, "jaxpr", body) for body in first]
    runs = params["length"] if equation.primitive.name == "scan" else 1
    total += runs * sum(flops(b) for b in bodies if hasattr(b, "eqns"))
  return total


def step_flops(name: str, remat: str) -> float:
  """FLOP of a training step of a config; what nothing reads does not count."""
  fields = config_file.read(f"configs/{name}")
  fields["model"]["remat"] = remat
  config = TrainConfig.from_dict(fields)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  trainer = config.make_trainer(
    train_step.stand_in_action_tokenizers(config), mesh
  )
  batch = train_step.abstract_batch(config, mesh)
  with jax.set_mesh(mesh):
    step = jax.make_jaxpr(trainer.train_step)(trainer.abstract_state(), batch)
  used, _ = partial_eval.dce_jaxpr(step.jaxpr, [True] * len(step.out_avals))
  return flops(used)


@pytest.mark.parametrize(
  ("name", "row"),
  [
    ("rt2_paligemma_3b_lora.py", "LoRA"),
    ("rt2_paligemma_3b_one_gpu.py:24", "full fine-tuning"),
  ],
)
def test_what_is_kept_saves_what_the_page_says(name, row):
  found = {remat: step_flops(name, remat) for remat in REMAT}
  saved = [
    f"{1 - found[remat] / found['full']:.0%}" for remat in ("ungated", "dots")
  ]
  page = (ROOT / "docs/one_gpu.md").read_text()
  assert f"| {row} | {' | '.join(saved)} |" in page
  assert found["none"] < found["dots"] < 1.01 * found["none"]

"""A LoRA run: what its checkpoints hold, and that it acts and goes on."""

import re

import jax
import numpy as np
import pytest

from rt2_jax import storage, training, trees
from rt2_jax.checkpoint import Checkpoints
from rt2_jax.models import lora
from rt2_jax.models.vlm import init_params
from rt2_jax.policy import Policy
from rt2_jax.train_config import TrainConfig
from rt2_jax.weights import export
from rt2_jax.weights.stored_checkpoint import StoredCheckpoint, write
from tests import tiny_models
from tests.convert_test import convert, refuse, server  # noqa: F401, a fixture
from tests.training_test import fields  # noqa: F401, a fixture


@pytest.fixture
def adapted(fields, tmp_path):  # noqa: F811
  """Four steps of adapters beside a decoder's matrices."""
  config = TrainConfig.from_dict(fields | {"pretrained": ""})
  write_base(config, tmp_path / "base.npz", seed=7)
  fields["pretrained"] = str(tmp_path / "base.npz")
  fields["model"] |= {"lora_rank": 2, "lora_targets": ("llm/layers/",)}
  fields["optimizer"] |= {
    "trained": ("_lora/",),
    "frozen_dtype": "bfloat16",
    "learning_rate": 1e-2,
  }
  return fields


def write_base(config, path, seed):
  params = init_params(config.model.without_adapters(), jax.random.key(seed))
  export.to_big_vision(params, path)


def test_a_lora_run_stores_its_adapters_and_goes_on_from_them(
  adapted, tmp_path
):
  whole = training.train(adapted, tmp_path / "run")
  run = Checkpoints.open_run(tmp_path / "run")
  names = trees.flatten(run.stored_params(4)).keys()
  assert names == lora.adapters(trees.flatten(whole.params))
  meta, _ = run.restore_meta(4)
  assert meta["base"]["weights"] == adapted["pretrained"]
  assert len(meta["base"]["hash"]) == 16

  policy = Policy.from_checkpoint(tmp_path / "run")
  held = trees.flatten(policy.params)
  for name, leaf in trees.flatten(jax.device_get(whole.params)).items():
    np.testing.assert_array_equal(held[name], leaf.astype(held[name].dtype))

  (tmp_path / "run/checkpoints/4").rename(tmp_path / "aside")
  resumed = training.train(adapted, tmp_path / "run")
  for tree in "params", "opt_state":
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(whole, tree),
      getattr(resumed, tree),
    )

  config = TrainConfig.from_dict(adapted)
  write_base(config, tmp_path / "base.npz", seed=8)
  (tmp_path / "run/checkpoints/4").rename(tmp_path / "aside2")
  other = "differs in .* expected the one with hash " + meta["base"]["hash"]
  with pytest.raises(ValueError, match=other):
    training.train(adapted, tmp_path / "run")
  with pytest.raises(ValueError, match=other):
    Policy.from_checkpoint(tmp_path / "run")


def test_a_base_that_trains_on_is_read_where_the_adapters_met_it(
  adapted, tmp_path
):
  base = fields_of_base(adapted) | {"num_steps": 2}
  training.train(base, tmp_path / "base")
  adapted["pretrained"] = str(tmp_path / "base")
  adapted["num_steps"] = 2
  adapted["optimizer"]["ema_decay"] = 0.5
  whole = training.train(adapted, tmp_path / "run")
  with Checkpoints.open_run(tmp_path / "base") as run:
    later = init_params(TrainConfig.from_dict(base).model, jax.random.key(9))
    run.save(4, later, None, *run.restore_meta())

  held = trees.flatten(Policy.from_checkpoint(tmp_path / "run").params)
  for name, leaf in trees.flatten(jax.device_get(whole.acting)).items():
    np.testing.assert_array_equal(held[name], leaf.astype(held[name].dtype))
  resumed = training.train(adapted, tmp_path / "run")
  tiny_models.assert_identical(resumed.params, whole.params)
  tiny_models.assert_identical(resumed.ema, whole.ema)

  adapted["pretrained"] = str(tmp_path / "run")  # adapters upon adapters
  with pytest.raises(ValueError, match="make it whole first: .* merge"):
    training.train(adapted, tmp_path / "second")

  storage.remove(tmp_path / "base/checkpoints/2")
  with pytest.raises(ValueError, match="which differs in .* put it back"):
    Policy.from_checkpoint(tmp_path / "run")
  storage.remove(tmp_path / "base")
  with pytest.raises(ValueError, match="got no .*base, .* where the run found"):
    Policy.from_checkpoint(tmp_path / "run")


def fields_of_base(adapted):
  """The run that trains all of the model that `adapted` has adapters on."""
  model = adapted["model"] | {"lora_rank": 0, "lora_targets": ()}
  optimizer = adapted["optimizer"] | {"trained": (".*",)}
  optimizer["frozen_dtype"] = "float32"
  return adapted | {"model": model, "optimizer": optimizer, "pretrained": ""}


@pytest.mark.parametrize(
  ("section", "changed", "message"),
  [
    ("model", {"lora_targets": ("llm/layrs/",)}, "'llm/layrs/' .* matches no"),
    ("model", {"lora_rank": 500}, "lora_rank = 500 for llm/.* at most"),
    ("model", {"lora_targets": ()}, "lora_rank = 2 without lora_targets"),
    ("optimizer", {"trained": (".*",)}, "let the whole base train"),
    ("optimizer", {"trained": ("^img/",)}, "let 0 of .* adapter"),
    ("optimizer", {"frozen": ("^llm/",)}, "let 0 of .* adapter"),
  ],
)
def test_a_run_that_makes_no_sense_is_refused(
  adapted, tmp_path, section, changed, message
):
  adapted[section] |= changed
  with pytest.raises(ValueError, match=message):
    training.train(adapted, tmp_path / "run")


def test_adapters_need_a_base(adapted, tmp_path):
  adapted["pretrained"] = ""
  with pytest.raises(ValueError, match="expected the weights of a base"):
    training.train(adapted, tmp_path / "run")


def test_a_run_is_merged_and_goes_to_peft_and_back(
  adapted,
  tmp_path,
  server,  # noqa: F811
):
  """The merged checkpoint acts as the unmerged one, and names no base."""
  workdir, other = tmp_path / "run", tmp_path / "merged"
  training.train(adapted, workdir)
  run = f"--workdir={workdir}"
  output = convert(server, "merge", run, f"--output={other}")
  proof = re.search(r"logits +(\S+) \(of (\S+)\)", output)
  assert 0 < float(proof[1]) < 1e-4 * float(proof[2])
  assert "equal action ids     4 of 4 actions" in output

  unmerged, merged = map(Policy.from_checkpoint, (workdir, other))
  assert unmerged.model.adapted and not merged.model.adapted
  image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
  actions = [p(image, "put carrot on plate") for p in (unmerged, merged)]
  np.testing.assert_array_equal(*actions)

  again, peft = tmp_path / "again", tmp_path / "peft"
  convert(server, "to_peft", run, f"--output={peft}")
  folder = f"--folder={peft}"
  convert(server, "from_peft", run, folder, f"--output={again}")
  before, after = map(StoredCheckpoint.open, (workdir, again))
  assert after.meta == before.meta and not after.has_optimizer
  tiny_models.assert_identical(after.read_params(), before.read_params())

  embedding = {"llm": {"embedder": {"input_embedding": np.zeros((4, 3))}}}
  both = trees.join(after.read_params(), embedding)
  like = before.meta, before.tokenizer, before.step
  write(both, *like, tmp_path / "both")
  message = refuse(
    server, "to_peft", f"--workdir={tmp_path}/both", f"--output={tmp_path}/no"
  )
  assert "trained 1 arrays of the base" in message
  assert "such as llm/embedder/input_embedding" in message
  assert not (tmp_path / "no").exists()

  message = refuse(server, "to_hf", run, f"--output={tmp_path / 'hf'}")
  assert "holds the adapters of a LoRA run alone" in message
